"""Every network with random weights: the map, the same bytes twice, no connection, no word, wrong files."""

import shutil
import socket

import numpy as np
import pytest

from annotator.class_colors import ADE20K, COCO, class_colors
from annotator.networks import depth, lineart, segmentation
from annotator.networks.table import NETWORKS
from annotator.networks.tensors import near_side
from annotator.registry import detect, forget
from annotator.util import target_size
from tests import small_detectors as small
from tools.download.catalogue import find_files

MAKERS = {
    "mlsd": small.mlsd_file, "pidinet": small.pidinet_file, "pidinet_safe": small.pidinet_file,
    "scribble_pidinet": small.pidinet_file, "lineart": small.lineart_files,
    "lineart_coarse": small.lineart_files,
    "lineart_anime": small.anime_file, "bae": small.normals_file, "zoe": small.zoe_file,
    "depth_anything_v2": small.depth_folders, "dpt": small.depth_folders, "from_depth": small.depth_folders,
    "segformer": small.segmentation_folders, "upernet_ade20k": small.segmentation_folders,
    "oneformer_ade20k": small.oneformer_folders, "oneformer_coco": small.oneformer_folders,
    "vitpose": small.people_folders, "openpose": small.openpose_files, "openpose_hand": small.openpose_files,
    "openpose_face": small.openpose_files, "openpose_full": small.openpose_files,
}  # fmt: skip
LARGE = {small.normals_file, small.zoe_file, small.openpose_files}  # hundreds of megabytes
SIDE = 64
FEW = {"people": 0.05, "joints": 0.0}
GIVEN = {"vitpose": FEW}
every_network = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if one in LARGE else ()) for name, one in MAKERS.items()],
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """name -> folder with its weights, made once."""
    made = {}
    narrow = pytest.MonkeyPatch()
    narrow.setattr(lineart, "WIDTH", 8)
    for module in (depth, segmentation):  # else pictures are looked at with half a thousand pixels
        narrow.setattr(module, "near_side", lambda picture, side, step: near_side(picture, SIDE, step))

    def folder(name):
        maker = MAKERS[name]
        if maker not in made:
            made[maker] = tmp_path_factory.mktemp(maker.__name__)
            maker(made[maker])
        return made[maker]

    yield folder
    narrow.undo()
    forget()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_every_network_is_tested():
    assert MAKERS.keys() == NETWORKS.keys()


@every_network
@pytest.mark.parametrize("shape", [(64, 64, 3), (97, 300), (1, 1, 4), (150, 20, 1)], ids=str)
def test_a_map_has_the_target_size_whatever_the_picture(name, weights, shape):
    image = noise(*shape)
    control_map = detect(name, image, resolution=64, folder=weights(name), **GIVEN.get(name, {}))
    assert control_map.dtype == np.uint8
    assert control_map.shape == (*target_size(*shape[:2], 64), 3)
    assert np.array_equal(image, noise(*shape)), "the picture itself is not changed"


@every_network
def test_a_network_says_the_same_twice_and_nothing_besides(name, weights, monkeypatch, capfd, recwarn):
    folder = weights(name)
    forget()
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    capfd.readouterr()
    first, second = (
        detect(name, noise(80, 70, 3), resolution=64, folder=folder, **GIVEN.get(name, {})) for _ in range(2)
    )
    assert np.array_equal(first, second)
    assert capfd.readouterr() == ("", "")
    assert not [str(one.message) for one in recwarn]


@every_network
def test_the_ends_of_every_range_work(name, weights):
    for key, param in NETWORKS[name].params.items():
        for value in (param.low, param.high) if param.kind == "number" else (True, False):
            control_map = detect(name, noise(64, 96, 3), resolution=64, folder=weights(name), **{key: value})
            assert control_map.shape == (64, 128, 3)


@every_network
def test_a_wrong_file_is_one_sentence_that_names_it_and_says_what_fetches_it(name, weights, tmp_path):
    detector = NETWORKS[name]
    folder = weights(name)
    for one in detector.weights:
        (shutil.copytree if (folder / one).is_dir() else shutil.copy)(folder / one, tmp_path / one)
        spoilt = tmp_path / one
        (spoilt / "model.safetensors" if spoilt.is_dir() else spoilt).write_bytes(b"<html>not here</html>")
    forget()
    with pytest.raises(ValueError, match="fetch it again with python tool_download_models.py get") as error:
        detect(name, noise(64, 64, 3), resolution=64, folder=tmp_path)
    assert str(tmp_path / detector.weights[0]) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_detector_tells_to_type_fetches_all_it_needs(name):
    detector = NETWORKS[name]
    words = detector.command.split(" get ")[1].split()
    assert {one.name for one in find_files(words).values()} == set(detector.weights)


@pytest.mark.parametrize("name", ["mlsd", "pidinet", "lineart"])
def test_weights_of_another_network_do_not_fit(name, weights, tmp_path):
    other = "lineart" if name != "lineart" else "pidinet"
    shutil.copy(weights(other) / NETWORKS[other].weights[0], tmp_path / NETWORKS[name].weights[0])
    with pytest.raises(ValueError, match="is of another network: .* do not fit"):
        detect(name, noise(64, 64, 3), resolution=64, folder=tmp_path)


@pytest.mark.parametrize("name", ["oneformer_ade20k", "oneformer_coco", "upernet_ade20k", "segformer"])
def test_a_segmentation_has_colours_of_its_classes_alone(name, weights):
    control_map = detect(name, noise(64, 96, 3), resolution=128, folder=weights(name))
    allowed = class_colors(COCO if "coco" in name else ADE20K)
    assert {tuple(c) for c in control_map.reshape(-1, 3).tolist()} <= {tuple(c) for c in allowed.tolist()}


def test_normals_from_depth_take_whichever_depth_is_there(weights, tmp_path):
    shutil.copytree(weights("dpt") / "dpt-large", tmp_path / "dpt-large")
    picture = noise(64, 64, 3)
    plain, swapped = (
        detect("from_depth", picture, resolution=64, folder=tmp_path, swapped=one) for one in (False, True)
    )
    assert np.array_equal(plain[:, :, ::-1], swapped)
    assert (plain[:, :, 2] >= 127).all(), "no surface that is seen turns its back"


def test_line_art_is_light_where_the_network_draws_dark(weights):
    forget()
    picture = noise(64, 64, 3)
    seen = detect("lineart", picture, resolution=64, folder=weights("lineart"))[:, :, 0]
    import torch

    from annotator.networks.libraries import build

    with torch.inference_mode():
        network = build(lineart.make, weights("lineart") / "sk_model.pth", torch.device("cpu"))
        drawn = lineart.draw(network, picture, torch.device("cpu"))
    assert np.array_equal(seen, 255 - drawn)
