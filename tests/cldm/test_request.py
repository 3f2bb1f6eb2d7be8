"""A request says everything, refuses nonsense in one sentence, and survives its own JSON."""

import pytest

from cldm.request import ControlInput, Request


def test_a_request_survives_its_own_json():
    controls = (ControlInput("canny", 0.5, 0.1, 0.9, params={"low": 50}), ControlInput(scales=(0.5, 1.0)))
    request = Request("청록색 원, cafés 🎨", "blurry", controls, seed=7, scale=3.5, guess_mode=True)
    assert Request.from_json(request.to_json()) == request


STORED = (
    '{"clip_skip": null, "control_every": 1, '
    '"controls": [{"branch": null, "control": "scribble_xdog", "end": 1.0, "params": {"threshold": 32}, '
    '"preprocess": true, "scales": null, "start": 0.0, "strength": 1.0}], '
    '"denoise": 1.0, "eta": 0.0, "guess_mode": false, "guidance_end": 1.0, "guidance_start": 0.0, '
    '"guided_control": false, "negative_prompt": "", "num_samples": 1, "prompt": "a cup", "resolution": 512, '
    '"reuse_cut": "outer-2", "reuse_every": 1, "sampler": "ddim", "scale": 9.0, "seed": 0, "steps": 20}'
)


def test_what_was_stored_before_there_were_detectors_to_choose_from_is_the_same_to_the_byte():
    assert Request.from_json(STORED).to_json() == STORED


def test_a_chosen_detector_is_stored_and_that_of_another_control_is_refused():
    request = Request("a cup", controls=(ControlInput(detector="xdog", params={"threshold": 9}),))
    assert Request.from_json(request.to_json()) == request
    assert '"detector": "xdog"' in request.to_json()
    with pytest.raises(ValueError, match="scribble has no detector 'canny': choose from drawing, xdog"):
        ControlInput(detector="canny")


@pytest.mark.parametrize("params", [{"threshold": 0}, {"threshold": "9"}, {"blur": 1}])
def test_parameters_are_checked_as_soon_as_they_are_known(params):
    with pytest.raises(ValueError, match="threshold=.*: it takes|has no parameter blur"):
        ControlInput(detector="xdog", params=params)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"prompt": "x", "controls": [{"strenght": 1}]}', "not json"]
)
def test_text_that_is_no_request_is_refused(text):
    with pytest.raises(ValueError, match="not a stored request"):
        Request.from_json(text)


def test_an_unknown_field_is_named():
    with pytest.raises(ValueError, match="colour"):
        Request.from_json('{"prompt": "x", "controls": [], "colour": 1}')


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("prompt", "  ", "the prompt is empty"),
        ("steps", 0, "use 1 to 500"),
        ("steps", 5000, "use 1 to 500"),
        ("seed", -1, "use 0 to"),
        ("seed", 2**32, "use 0 to"),
        ("sampler", "magic", "known are ddim"),
        ("eta", 1.5, "0 .deterministic. to 1"),
        ("denoise", 0.0, "more than 0"),
        ("num_samples", 0, "use 1 to 64"),
        ("scale", -1.0, "use 0 to 100"),
        ("resolution", 32, "64 to 4096"),
    ],
)
def test_a_setting_out_of_range_is_refused(field, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        Request(**{"prompt": "a circle", field: value})


def test_guess_mode_needs_no_prompt():
    assert Request("", guess_mode=True).prompt == ""


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"control": "crayon"}, "choose from"),
        ({"strength": -0.1}, "0 .no control. to 10"),
        ({"start": 0.5, "end": 0.5}, "start < end"),
        ({"end": 1.1}, "start < end"),
    ],
)
def test_a_control_out_of_range_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        ControlInput(**fields)
