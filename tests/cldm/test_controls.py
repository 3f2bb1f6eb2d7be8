from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from annotator import canny, scribble
from annotator.util import HWC3, resize_image, target_size
from cldm.controls import CONTROLS, annotate, get_control

ROOT = Path(__file__).parents[2]
PUBLISHED = {name: control for name, control in CONTROLS.items() if name not in ("scribble_xdog", "none")}
WITHOUT_DETECTOR = [name for name, control in CONTROLS.items() if control.annotate is None]


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)


def configuration(control):
    """The yaml of a control over its base, as the model loader merges them."""
    own = OmegaConf.load(ROOT / control.yaml)
    base = OmegaConf.load((ROOT / control.yaml).parent / own.pop("base"))
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
    assert having(lambda c: c.clip_skip != 1) == having(lambda c: not c.guess_mode) == {"lineart_anime"}
    assert having(lambda c: c.masked_hint is not None) == {"inpaint"}
    assert CONTROLS["inpaint"].masked_hint == -1


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("size", [(64, 64), (150, 200), (301, 99)])
def test_every_control_takes_a_ready_made_map_and_most_a_picture(name, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for preprocess in {False, name not in WITHOUT_DETECTOR}:
        control_map = annotate(name, image, 64, preprocess=preprocess)
        assert control_map.shape == (*target_size(*size, 64), 3)
        assert control_map.dtype == np.uint8


@pytest.mark.parametrize("name", CONTROLS)
def test_a_ready_made_map_of_the_right_size_is_used_as_it_is(name):
    ready = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    assert np.array_equal(annotate(name, ready, 64, preprocess=False), ready)


@pytest.mark.parametrize("name", ["canny", "mlsd", "scribble", "lineart", "lineart_anime"])
def test_ready_made_lines_survive_shrinking_and_enlarging(name):
    lines = np.zeros((640, 640), np.uint8)
    lines[:, 333] = lines[77] = 255
    small = annotate(name, lines, 64, preprocess=False)
    assert (small[:, 33] == 255).all()
    assert (small[7] == 255).all()
    large = annotate(name, lines[:64, 320:384], 256, preprocess=False)
    assert set(np.unique(large)) == {0, 255}
    assert (large[:, 52:56] == 255).all()


def test_ready_made_class_colours_are_never_mixed():
    classes = np.random.default_rng(0).integers(0, 2, (90, 130, 1), np.uint8) * np.uint8([120, 10, 200])
    for resolution in (64, 256):
        found = annotate("seg", classes, resolution, preprocess=False).reshape(-1, 3)
        assert {tuple(colour) for colour in found} == {(0, 0, 0), (120, 10, 200)}


def test_pictures_go_to_the_detector_of_their_control(picture):
    assert np.array_equal(
        annotate("canny", picture, 64, low=50), canny.annotate(picture, resolution=64, low=50)
    )
    assert np.array_equal(
        annotate("scribble", picture, 64, invert=True), scribble.annotate(picture, resolution=64, invert=True)
    )
    assert np.array_equal(
        annotate("scribble_xdog", picture, 64), scribble.annotate_xdog(picture, resolution=64)
    )


@pytest.mark.parametrize("name", ["inpaint", "ip2p", "tile", "none"])
def test_some_controls_are_the_picture_itself(name, picture):
    assert np.array_equal(annotate(name, picture, 64), resize_image(picture, 64))


@pytest.mark.parametrize("name", ["canny", "scribble", "scribble_xdog", "tile", "depth"])
def test_grey_and_transparent_pictures_are_taken(name, picture):
    preprocess = name != "depth"
    grey = picture[:, :, 0]
    assert np.array_equal(
        annotate(name, grey, 64, preprocess=preprocess), annotate(name, HWC3(grey), 64, preprocess=preprocess)
    )
    assert annotate(name, np.dstack([picture, grey]), 64, preprocess=preprocess).shape[2] == 3


@pytest.mark.parametrize("name", ["Canny", "", "hed"])
def test_an_unknown_control_lists_the_known_ones(name, picture):
    with pytest.raises(ValueError, match=f"'{name}' is not known: choose from canny, mlsd, depth.*none"):
        annotate(name, picture, 64)
    with pytest.raises(ValueError, match="is not known"):
        get_control(name)


@pytest.mark.parametrize("name", WITHOUT_DETECTOR)
def test_a_control_without_detector_asks_for_a_ready_made_map(name, picture):
    with pytest.raises(
        ValueError, match=f"{name} has no detector in this build: give a ready-made map .*=False"
    ):
        annotate(name, picture, 64)


def test_an_unknown_parameter_lists_the_known_ones(picture):
    with pytest.raises(ValueError, match="canny has no parameter blur: it takes low, high"):
        annotate("canny", picture, 64, blur=3)
    with pytest.raises(ValueError, match="tile has no parameter low: it takes none"):
        annotate("tile", picture, 64, low=3)


def test_a_ready_made_map_takes_no_parameters(picture):
    with pytest.raises(ValueError, match="low: a ready-made map .* takes no parameters"):
        annotate("canny", picture, 64, preprocess=False, low=3)


def test_only_pictures_are_annotated():
    with pytest.raises(TypeError, match="uint8"):
        annotate("canny", np.zeros((64, 64, 3)), 64)
