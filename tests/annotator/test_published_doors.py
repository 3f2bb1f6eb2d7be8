"""The published classes: what they say without weights, and the same networks with them."""

from importlib import import_module

import numpy as np
import pytest

from annotator.registry import detect
from tests import small_detectors as small

DOORS = {
    "mlsd.MLSDdetector": "mlsd_large_512_fp32.pth",
    "pidinet.PidiNetDetector": "table5_pidinet.pth",
    "normalbae.NormalBaeDetector": "scannet.pt",
    "lineart.LineartDetector": "sk_model.pth",
    "lineart_anime.LineartAnimeDetector": "netG.pth",
    "zoe.ZoeDetector": "ZoeD_M12_N.pt",
    "midas.MidasDetector": "Depth-Anything-V2-Small-hf",
    "oneformer.OneformerADE20kDetector": "oneformer_ade20k_swin_tiny",
    "oneformer.OneformerCOCODetector": "oneformer_coco_swin_large",
    "uniformer.UniformerDetector": "upernet-convnext-small",
    "openpose.OpenposeDetector": "body_pose_model.pth",
}


def door(name):
    module, attribute = name.split(".")
    return getattr(import_module(f"annotator.{module}"), attribute)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(("name", "file"), DOORS.items())
def test_without_weights_a_door_says_what_fetches_them(name, file, tmp_path):
    with pytest.raises(ValueError, match=f"{file} in .*: python tool_download_models.py get {file}"):
        door(name)(tmp_path)


def test_straight_lines_are_the_detector_s(tmp_path):
    small.mlsd_file(tmp_path)
    lines = door("mlsd.MLSDdetector")(tmp_path)(noise(64, 128, 3), 0.1, 0.1)
    assert lines.shape == (64, 128)
    wanted = detect("mlsd", noise(64, 128, 3), resolution=64, folder=tmp_path)
    assert np.array_equal(lines, wanted[:, :, 0])


def test_soft_edges_are_the_detector_s(tmp_path):
    small.pidinet_file(tmp_path)
    see = door("pidinet.PidiNetDetector")(tmp_path)
    for name, safe in (("pidinet", False), ("pidinet_safe", True)):
        wanted = detect(name, noise(64, 64, 3), resolution=64, folder=tmp_path)
        assert np.array_equal(see(noise(64, 64, 3), safe=safe), wanted[:, :, 0])


def test_line_drawings_leave_the_negative_to_the_published_script(tmp_path):
    small.lineart_files(tmp_path)
    drawn = door("lineart.LineartDetector")(tmp_path)(noise(64, 64, 3), coarse=False)
    wanted = detect("lineart", noise(64, 64, 3), resolution=64, folder=tmp_path)
    assert np.array_equal(255 - drawn, wanted[:, :, 0])


def test_depth_comes_with_normals(tmp_path, monkeypatch):
    from annotator.networks import depth
    from annotator.networks.tensors import near_side

    monkeypatch.setattr(depth, "near_side", lambda picture, side, step: near_side(picture, 64, step))
    small.depth_folders(tmp_path)
    grey, normals = door("midas.MidasDetector")(tmp_path)(noise(64, 128, 3), bg_th=0.4)
    assert grey.shape == (64, 128)
    assert normals.shape == (64, 128, 3)
    wanted = detect("depth_anything_v2", noise(64, 128, 3), resolution=64, folder=tmp_path)
    assert np.array_equal(grey, wanted[:, :, 0])


@pytest.mark.slow
def test_skeletons_come_in_both_published_forms(tmp_path):
    small.openpose_files(tmp_path)
    see = door("openpose.OpenposeDetector")(tmp_path)
    canvas, found = see(noise(64, 64, 3), hand=True)
    assert canvas.shape == (64, 64, 3)
    assert found.keys() == {"candidate", "subset"}
    assert np.array_equal(see(noise(64, 64, 3), hand_and_face=True), canvas)
