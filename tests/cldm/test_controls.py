from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from annotator import canny, scribble
from annotator.detector import Detector
from annotator.registry import DETECTORS
from annotator.util import HWC3, resize_image, target_size
from checkpoints.names.recognize import file_stem
from cldm.controls import (
    CONTROLS,
    STORED_CONTROLS,
    Annotators,
    Detection,
    annotate,
    branch_names,
    control_of_file,
    get_control,
    ready_detectors,
)

ROOT = Path(__file__).parents[2]
PUBLISHED = {name: control for name, control in CONTROLS.items() if name != "none"}
MAP = Detection(preprocess=False)
GIVEN = {"pose_json": {"points": '{"people": []}'}}  # what a detector cannot do without
NAMES = [*CONTROLS, *STORED_CONTROLS]


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)


def configuration(control):
    """The yaml of a control over its base, as the model loader merges them."""
    models = ROOT / "models"
    own = OmegaConf.load(models / f"{control.stem}.yaml")
    base = OmegaConf.load(models / own.pop("base"))
    return base, OmegaConf.merge(base, own)


def test_there_are_14_published_controls_with_a_file_each():
    assert len(PUBLISHED) == 14
    assert len({control.stem for control in PUBLISHED.values()}) == 14
    assert {path.stem for path in (ROOT / "models").glob("control_v11*.yaml")} == {
        control.stem for control in PUBLISHED.values()
    }


def test_the_eight_1_0_files_are_named():
    kinds = {"canny", "depth", "hed", "mlsd", "normal", "openpose", "scribble", "seg"}
    assert {c.stem_10 for c in PUBLISHED.values() if c.stem_10} == {f"control_sd15_{kind}" for kind in kinds}


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_yaml_differs_from_its_base_only_where_the_control_is_special(name):
    control = PUBLISHED[name]
    base, merged = configuration(control)
    if control.pool:
        assert merged.model.params.pop("global_average_pooling") is True
        base.model.params.pop("global_average_pooling", None)
    if control.clip_skip > 1:
        changed = merged.model.params.cond_stage_config.params
        assert (changed.pop("layer"), changed.pop("layer_idx")) == ("hidden", -control.clip_skip)
        if not changed:
            merged.model.params.cond_stage_config.pop("params")
    assert merged == base


def test_special_rules_belong_to_the_controls_that_have_them():
    def having(rule):
        return {name for name, control in PUBLISHED.items() if rule(control)}

    assert having(lambda c: c.pool) == having(lambda c: c.conditional_only) == {"shuffle"}
    assert having(lambda c: c.clip_skip != 1) == {"lineart_anime"}
    assert having(lambda c: c.masked_hint is not None) == {"inpaint"}
    assert CONTROLS["inpaint"].masked_hint == -1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 64), (150, 200), (301, 99)])
def test_every_control_takes_a_ready_made_map_and_a_picture_where_a_detector_is_ready(name, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    ready = [one for one in ready_detectors(name) if not DETECTORS[one].load]
    for how in [MAP, *(Detection(one, GIVEN.get(one, {})) for one in ready)]:
        control_map = annotate(name, image, 64, how)
        assert control_map.shape == (*target_size(*size, 64), 3)
        assert control_map.dtype == np.uint8


@pytest.mark.parametrize("name", NAMES)
def test_the_detectors_of_a_control_are_known(name):
    assert not set(CONTROLS.get(name, get_control(name)).detectors) - set(DETECTORS)


def test_every_detector_serves_a_control():
    assert set(DETECTORS) == {one for control in CONTROLS.values() for one in control.detectors}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_ready_made_map_of_the_right_size_is_used_as_it_is(name):
    ready = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    assert np.array_equal(annotate(name, ready, 64, MAP), ready)


@pytest.mark.parametrize("name", ["canny", "mlsd", "scribble", "lineart", "lineart_anime"])
def test_ready_made_lines_survive_shrinking_and_enlarging(name):
    lines = np.zeros((640, 640), np.uint8)
    lines[:, 333] = lines[77] = 255
    small = annotate(name, lines, 64, MAP)
    assert (small[:, 33] == 255).all()
    assert (small[7] == 255).all()
    large = annotate(name, lines[:64, 320:384], 256, MAP)
    assert set(np.unique(large)) == {0, 255}
    assert (large[:, 52:56] == 255).all()


def test_ready_made_class_colours_are_never_mixed():
    classes = np.random.default_rng(0).integers(0, 2, (90, 130, 1), np.uint8) * np.uint8([120, 10, 200])
    for resolution in (64, 256):
        found = annotate("seg", classes, resolution, MAP).reshape(-1, 3)
        assert {tuple(colour) for colour in found} == {(0, 0, 0), (120, 10, 200)}


@pytest.mark.parametrize(
    ("name", "how", "expected"),
    [
        ("canny", Detection(params={"low": 50}), lambda x: canny.annotate(x, resolution=64, low=50)),
        (
            "scribble",
            Detection(params={"invert": True}),
            lambda x: scribble.annotate(x, resolution=64, invert=True),
        ),
        ("scribble", Detection("xdog"), lambda x: scribble.annotate_xdog(x, resolution=64)),
        ("scribble_xdog", Detection(), lambda x: scribble.annotate_xdog(x, resolution=64)),
    ],
)
def test_pictures_go_to_the_detector_that_is_asked_for(name, how, expected, picture):
    assert np.array_equal(annotate(name, picture, 64, how), expected(picture))


@pytest.mark.parametrize("name", ["inpaint", "ip2p", "tile", "none"])
def test_some_controls_are_the_picture_itself(name, picture):
    assert np.array_equal(annotate(name, picture, 64), resize_image(picture, 64))


@pytest.mark.parametrize("name", ["canny", "scribble", "scribble_xdog", "tile", "depth"])
def test_grey_and_transparent_pictures_are_taken(name, picture):
    how, grey = MAP if name == "depth" else Detection(), picture[:, :, 0]
    assert np.array_equal(annotate(name, grey, 64, how), annotate(name, HWC3(grey), 64, how))
    assert annotate(name, np.dstack([picture, grey]), 64, how).shape[2] == 3


@pytest.mark.parametrize("name", ["Canny", "", "hed"])
def test_an_unknown_control_lists_the_known_ones(name, picture):
    with pytest.raises(ValueError, match=f"'{name}' is not known: choose from canny, mlsd, depth.*none"):
        annotate(name, picture, 64)
    with pytest.raises(ValueError, match="is not known"):
        get_control(name)


def test_a_detector_of_another_control_lists_its_own(picture):
    with pytest.raises(ValueError, match="scribble has no detector 'canny': choose from drawing, xdog"):
        annotate("scribble", picture, 64, Detection("canny"))


def test_a_detector_that_is_not_ready_says_how_and_names_those_that_are(picture, tmp_path, monkeypatch):
    absent = Detector("edges", load=pytest.fail, weights=("a.pth", "b"), get="both")
    monkeypatch.setitem(DETECTORS, "absent", absent)
    monkeypatch.setitem(CONTROLS, "canny", replace(CONTROLS["canny"], detectors=("absent", "canny")))
    says = "absent needs a.pth and b in .*: python tool_download_models.py get both; ready for canny: canny;"
    with pytest.raises(ValueError, match=says):
        annotate("canny", picture, 64, annotators=Annotators(tmp_path))
    assert annotate("canny", picture, 64, Detection("canny"), Annotators(tmp_path)).any()


def test_an_unknown_parameter_lists_the_known_ones(picture):
    with pytest.raises(ValueError, match="canny has no parameter blur: it takes low, high"):
        annotate("canny", picture, 64, Detection(params={"blur": 3}))
    with pytest.raises(ValueError, match="picture has no parameter low: it takes none"):
        annotate("ip2p", picture, 64, Detection(params={"low": 3}))


@pytest.mark.parametrize("how", [{"params": {"low": 3}}, {"detector": "canny"}])
def test_a_ready_made_map_takes_no_detector_and_no_parameters(picture, how):
    with pytest.raises(ValueError, match="(low|canny): a ready-made map .* takes no detector or parameters"):
        annotate("canny", picture, 64, replace(MAP, **how))


def test_only_pictures_are_annotated():
    with pytest.raises(TypeError, match="uint8"):
        annotate("canny", np.zeros((64, 64, 3)), 64)


# The names of files, as people have them on disk

STEMS = [(control.stem, name) for name, control in CONTROLS.items() if control.stem]
OLD = [(one.stem_10, name) for name, one in CONTROLS.items() if one.stem_10]
FORMS = [
    "{}.pth",
    "{}_fp16.safetensors",
    "{}.fp16.safetensors",
    "models/{}",
    "{}/diffusion_pytorch_model.bin",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("stem", "control"), STEMS + OLD)
def test_every_published_name_is_known_in_every_form(stem, control, form):
    assert control_of_file(form.format(stem)) == control


@pytest.mark.parametrize(
    ("name", "control"),
    [
        ("control_canny-fp16.safetensors", "canny"),
        ("control_hed-fp16.safetensors", "softedge"),
        ("diff_control_sd15_depth_fp16.safetensors", "depth"),
        ("lllyasviel/sd-controlnet-seg", "seg"),
        ("sd-controlnet-normal/diffusion_pytorch_model.fp16.safetensors", "normalbae"),
        ("controlnet-sd21-openpose-diffusers/controlnet/diffusion_pytorch_model.bin", "openpose"),
        ("control_v11p_sd21_lineart.safetensors", "lineart"),
        ("v1-5-pruned.ckpt", None),
        ("control_v1p_sd15_brightness.safetensors", None),
        ("tiny_control.safetensors", None),
        ("controlnet.pth", None),
        ("canny.safetensors", None),
        ("t2iadapter_sketch_sd15v2.pth", None),
    ],
)
def test_names_of_other_programs_are_known_and_no_others(name, control):
    assert control_of_file(name) == control


def test_a_file_that_is_called_as_all_are_goes_by_its_folder():
    assert file_stem("a/control_x/diffusion_pytorch_model.fp16.safetensors") == "control_x"
    assert file_stem("a/my.model.ckpt") == "my.model"
    assert file_stem("a/sd-v1.1") == "sd-v1.1"


def test_two_files_never_share_the_name_of_a_branch():
    assert branch_names(["a/x.pth", "b/y.pth", "a/x.pth"]) == {"x": "a/x.pth", "y": "b/y.pth"}
    with pytest.raises(ValueError, match="two branches are called 'x': rename one"):
        branch_names(["a/x.pth", "b/x.safetensors"])
