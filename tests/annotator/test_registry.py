"""What holds for every detector; those that need weights are called where these lie in the folder."""

import inspect
import json
import socket
from dataclasses import replace

import cv2
import numpy as np
import pytest

from annotator.detector import FOLDER
from annotator.registry import DETECTORS, detect, forget, get_detector, ready
from annotator.util import target_size

READY = [name for name in DETECTORS if ready(name) is None]
AT_ONCE = [name for name, one in DETECTORS.items() if one.annotate]
RESERVED = {"name", "image", "resolution", "folder", "device"}  # what `detect` itself is told
SIZES = [(64, 64), (200, 131), (97, 300), (1, 1), (3, 40)]
POINTS = json.dumps({"people": [{"pose_keypoints_2d": [0.5, 0.5, 1] * 18}]})
GIVEN = {"pose_json": {"points": POINTS}}  # what a detector cannot do without
every_detector = pytest.mark.parametrize("name", DETECTORS)
every_ready_one = pytest.mark.parametrize("name", READY)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@every_ready_one
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_a_map_has_the_target_size_whatever_the_picture(name, size, channels):
    image = noise(*size, *channels)
    before = image.copy()
    control_map = detect(name, image, resolution=64, **GIVEN.get(name, {}))
    assert control_map.dtype == np.uint8
    assert control_map.shape == (*target_size(*size, 64), 3)
    assert np.array_equal(image, before), "the picture itself is not changed"


@every_ready_one
def test_the_same_picture_gives_the_same_bytes_twice(name):
    image = noise(90, 70, 3, seed=1)
    first, second = (detect(name, image, resolution=64, **GIVEN.get(name, {})) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", [name for name in READY if "lines" in get_detector(name).shows])
def test_lines_are_white_and_what_is_between_them_black(name):
    page = np.full((256, 256, 3), 255, np.uint8)
    cv2.rectangle(page, (64, 64), (192, 192), (0, 0, 0), 8)
    control_map = detect(name, page, resolution=256)
    near = cv2.dilate((page == 0).astype(np.uint8), np.ones((41, 41)))[:, :, 0] > 0
    assert control_map.max() > 100
    assert not control_map[~near].any()
    assert (control_map == control_map[:, :, :1]).all(), "lines have no colour"


@every_ready_one
def test_no_detector_opens_a_connection(name, monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    detect(name, noise(80, 64, 3), resolution=64, **GIVEN.get(name, {}))


@every_detector
def test_parameters_have_a_range_that_their_default_lies_in_and_a_line_of_help(name):
    for key, param in DETECTORS[name].params.items():
        assert key.isidentifier()
        assert key not in RESERVED
        assert param.checked(key, param.default) == param.default
        assert 0 < len(param.help) < 90
        if param.kind.endswith("number"):
            assert param.low <= param.default <= param.high
            assert 0 < param.step <= param.high - param.low


@pytest.mark.parametrize("name", AT_ONCE)
def test_a_function_takes_what_its_data_say_with_the_same_defaults(name):
    image, resolution, *rest = inspect.signature(DETECTORS[name].annotate).parameters.values()
    assert (image.name, resolution.name) == ("image", "resolution")
    assert {one.name: one.default for one in rest} == {
        k: p.default for k, p in DETECTORS[name].params.items()
    }


@every_ready_one
def test_the_ends_of_every_range_work(name):
    image = noise(64, 96, 3)
    for key, param in DETECTORS[name].params.items():
        for value in (param.low, param.high) if param.kind.endswith("number") else param.choices:
            if (name, key, value) not in TOGETHER:
                given = GIVEN.get(name, {}) | {key: value}
                assert detect(name, image, resolution=64, **given).shape == (64, 128, 3)


TOGETHER = {("canny", "low", 2040), ("canny", "high", 0)}  # of a pair that must stay in order


@every_detector
def test_a_detector_runs_at_once_or_needs_weights(name):
    detector = DETECTORS[name]
    assert bool(detector.annotate) != bool(detector.load)
    assert bool(detector.load) == bool(detector.weights)
    assert detector.shows
    assert detector.licence


@pytest.mark.parametrize("name", [name for name in DETECTORS if name not in AT_ONCE])
def test_without_its_weights_a_detector_says_what_fetches_them(name, tmp_path):
    says = DETECTORS[name].command
    assert ready(name, tmp_path).endswith(says)
    with pytest.raises(ValueError, match=says):
        detect(name, noise(64, 64, 3), resolution=64, folder=tmp_path)


def test_a_package_that_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(DETECTORS, "canny", replace(DETECTORS["canny"], modules=("no_such_package",)))
    assert ready("canny") == 'canny needs the package no_such_package: pip install -e ".[annotators]"'


def test_weights_are_loaded_once_for_a_folder_and_a_device(monkeypatch, tmp_path):
    loads = []

    def load(folder, device):
        loads.append((folder, str(device)))
        return lambda image, *, resolution: np.zeros(
            (*target_size(*image.shape[:2], resolution), 3), np.uint8
        )

    slow = replace(DETECTORS["canny"], annotate=None, params={}, load=load, weights=("w",), instead=("v",))
    monkeypatch.setitem(DETECTORS, "slow", slow)
    (tmp_path / "v").touch()
    for _ in range(2):
        detect("slow", noise(64, 64, 3), resolution=64, folder=tmp_path)
    assert loads == [(tmp_path, "cpu")]
    forget()
    detect("slow", noise(64, 64, 3), resolution=64, folder=tmp_path)
    assert len(loads) == 2
    forget()


def test_an_unknown_detector_lists_the_known_ones():
    with pytest.raises(ValueError, match="'Canny' is not known: choose from .*canny"):
        get_detector("Canny")


def test_the_folder_of_weights_is_beside_the_models():
    assert FOLDER.parent.name == "models"
    assert FOLDER.name == "annotators"


@every_ready_one
@pytest.mark.parametrize("resolution", [63, 5000, 64.5, None])
def test_a_resolution_that_cannot_be_is_one_sentence(name, resolution):
    with pytest.raises((ValueError, TypeError), match="resolution="):
        detect(name, noise(64, 64, 3), resolution=resolution, **GIVEN.get(name, {}))
