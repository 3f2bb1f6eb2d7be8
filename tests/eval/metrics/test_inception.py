"""FID and KID beside torch-fidelity, with the same random weights."""

import numpy as np
import pytest
import torch

from eval.metrics.distances import frechet_distance, kid
from eval.metrics.inception import load_trunk, open_inception, resize_as_tensorflow, resize_cleanly
from eval.metrics.metric import Picture, Tools
from ldm.image import write_png
from tests.eval.metrics.networks import inception_file

COUNT = 5


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return inception_file(tmp_path_factory.mktemp("weights"), patch)


@pytest.fixture(scope="module")
def sides():
    """Noise, and plain pictures: far apart."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (COUNT, 48, 40, 3), dtype=np.uint8)
    plain = np.broadcast_to(rng.integers(0, 256, (COUNT, 1, 1, 3), dtype=np.uint8), noise.shape)
    return noise, np.ascontiguousarray(plain)


def test_fid_and_kid_are_those_of_torch_fidelity(tmp_path, weights, sides):
    from torch_fidelity import calculate_metrics

    for name, images in zip("ab", sides, strict=True):
        for number, image in enumerate(images):
            write_png(tmp_path / name / f"{number}.png", image)
    options = {"fid": True, "kid": True, "kid_subset_size": COUNT, "kid_subsets": 1, "cuda": False}
    options |= {"cache": False, "verbose": False, "save_cpu_ram": True, "batch_size": COUNT}
    options |= {"feature_extractor_weights_path": str(weights)}
    expected = calculate_metrics(input1=str(tmp_path / "a"), input2=str(tmp_path / "b"), **options)
    compute = open_inception(Tools(weights, "cpu"), resize_as_tensorflow)
    rows = [compute([Picture(image) for image in images]).astype(np.float64) for images in sides]
    assert frechet_distance(*rows).value == pytest.approx(expected["frechet_inception_distance"], rel=1e-5)
    assert kid(*rows).value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-5)


def test_a_clean_resize_is_that_of_clean_fid(sides):
    resize = pytest.importorskip("cleanfid.resize").build_resizer("clean")
    for image in sides[0][:2]:
        np.testing.assert_array_equal(resize_cleanly(image)[0].permute(1, 2, 0), resize(image))


def test_the_two_resizes_give_two_numbers(weights, sides):
    found = []
    for resize in (resize_as_tensorflow, resize_cleanly):
        compute = open_inception(Tools(weights, "cpu"), resize)
        found.append(frechet_distance(*(compute([Picture(x) for x in side[:3]]) for side in sides)).value)
    assert abs(found[0] / found[1] - 1) > 0.01


def test_a_pickle_with_anything_but_tensors_is_not_opened(tmp_path):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    torch.save({"Conv2d_1a_3x3.conv.weight": print}, path)
    with pytest.raises(Exception, match="[Ww]eights"):
        load_trunk(path)
