"""A request says everything, refuses nonsense in one sentence, and survives its own JSON."""

import pytest

from cldm.request import ControlInput, Request


def test_a_request_survives_its_own_json():
    controls = (ControlInput("canny", 0.5, 0.1, 0.9, params={"low": 50}), ControlInput(scales=(0.5, 1.0)))
    request = Request("청록색 원, cafés 🎨", "blurry", controls, seed=7, scale=3.5, guess_mode=True)
    assert Request.from_json(request.to_json()) == request


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
