"""From the page's fields to a request and back: nothing is lost on the way, nothing wrong gets through."""

import json
import math
from dataclasses import asdict

import pytest

from annotator.registry import DETECTORS
from app.form import (
    ALL_SLOTS,
    BALANCED,
    CONTROL,
    IMPORTANCE,
    OWN_BRANCH,
    PLAIN,
    PROMPT,
    Form,
    ModelFacts,
    control_input,
    shown_value,
    slots_of,
    values_of,
)
from app.request_data import MAX_CONTROLS, number, request_of
from cldm.controls import CONTROLS
from cldm.request import ControlInput, Request

FACTS = ModelFacts("small", 128, 1.75, True, 13, ("extra",))
USUAL = Request("red star", resolution=128, scale=1.75)


def unit(**fields):
    """The fields of a control unit as a new page has them."""
    slots = dict.fromkeys(ALL_SLOTS)
    usual = {"control": "scribble", "detector": "drawing", "strength": 1.0, "start": 0.0, "end": 1.0}
    param, slot = next((param, slot) for param, slot in slots_of(DETECTORS["drawing"]).items())
    slots[slot] = shown_value(DETECTORS["drawing"].params[param], DETECTORS["drawing"].params[param].default)
    return {**slots, **usual, "branch": OWN_BRANCH, "ready": False, **fields}


def form(*units, **fields):
    values = {name: getattr(USUAL, name) for name in PLAIN}
    values |= {"seed": 0, "randomise": False, "importance": BALANCED, "clip_skip": 0}
    return Form({**values, **fields}, units or (unit(),))


def test_a_new_page_asks_for_what_the_request_has_by_default():
    made = form().request(FACTS)
    assert made == Request(
        "red star", resolution=128, scale=1.75, controls=(ControlInput(detector="drawing"),)
    )


def there_and_back(request):
    values, units = values_of(request.completed(asdict(FACTS)), FACTS)
    return Form(values, [{**dict.fromkeys(ALL_SLOTS), **one} for one in units]).request(FACTS)


@pytest.mark.parametrize(
    "fields",
    [
        {"negative_prompt": "blue", "seed": 7, "steps": 5, "sampler": "unipc", "eta": 0.5},
        {"guess_mode": True, "prompt": "", "clip_skip": 2, "denoise": 0.5, "num_samples": 3},
        {"guidance_start": 0.1, "guidance_end": 0.7, "reuse_every": 2, "control_every": 3},
        {"controls": (ControlInput("canny", params={"low": 50.0}), ControlInput("tile", 0.5, 0.1, 0.9))},
        {"controls": (ControlInput("scribble", branch="extra", preprocess=False),)},
        {"controls": (ControlInput("scribble", detector="xdog", params={"threshold": 9}),)},
    ],
    ids=["sampling", "guessing", "savings", "controls", "a map", "a detector"],
)
def test_a_request_survives_the_page(fields):
    asked = Request(**{"prompt": "red star", "resolution": 128, "scale": 1.75, **fields})
    made = there_and_back(asked)
    # The page names the detector that a request may leave open, and leaves out usual values.
    for one, other in zip(asked.controls, made.controls, strict=True):
        assert one.detector in (None, other.detector)
        assert (one.control, one.strength, one.start, one.end, one.branch, one.preprocess) == (
            other.control, other.strength, other.start, other.end, other.branch, other.preprocess,
        )  # fmt: skip
        assert other.params == one.params
    names = [name for name in vars(asked) if name not in ("controls", "guided_control")]
    assert {name: getattr(made, name) for name in names} == {name: getattr(asked, name) for name in names}


@pytest.mark.parametrize("detector", DETECTORS)
def test_every_parameter_of_every_detector_has_a_slot_of_its_own(detector):
    slots = slots_of(DETECTORS[detector])
    assert len(set(slots.values())) == len(DETECTORS[detector].params)
    assert set(slots.values()) <= set(ALL_SLOTS)


@pytest.mark.parametrize("control", [name for name, one in CONTROLS.items() if one.detectors])
def test_usual_values_of_every_detector_ask_for_nothing_special(control):
    for name in CONTROLS[control].detectors:
        params = DETECTORS[name].params
        slots = {
            slot: shown_value(params[one], params[one].default)
            for one, slot in slots_of(DETECTORS[name]).items()
        }
        made = control_input(unit(control=control, detector=name, **slots))
        assert (made.control, made.detector, made.params) == (control, name, {})


def test_when_the_prompt_matters_more_shallow_residuals_fade():
    made = form(unit(strength=0.5), importance=PROMPT).request(FACTS)
    scales = made.controls[0].scales
    assert scales == pytest.approx([0.5 * 0.825 ** (12 - i) for i in range(13)])
    assert made.guided_control is False


def test_when_the_control_matters_more_guidance_strengthens_it():
    made = form(importance=CONTROL).request(FACTS)
    assert (made.guided_control, made.controls[0].scales) == (True, None)


@pytest.mark.parametrize("importance", IMPORTANCE)
@pytest.mark.parametrize("guided", [False, True])
def test_the_importance_of_a_stored_request_is_found_again(importance, guided):
    """Or another word for the very same request: what a model does by itself needs none."""
    facts = ModelFacts("small", 128, 1.75, guided, 13)
    asked = form(importance=importance).request(facts).completed({"guided_control": guided})
    values, units = values_of(asked, facts)
    again = Form(values, [{**dict.fromkeys(ALL_SLOTS), **one} for one in units]).request(facts)
    assert again.completed({"guided_control": guided}).guided_control == asked.guided_control
    for one, other in zip(again.controls, asked.controls, strict=True):
        assert (one.scales is None) == (other.scales is None)
        assert other.scales is None or one.scales == pytest.approx(other.scales)


def test_a_request_that_the_page_cannot_show_is_refused_in_a_sentence():
    odd = Request("star", controls=(ControlInput(scales=(0.1, 0.9)),))
    with pytest.raises(ValueError, match="no field for"):
        values_of(odd, FACTS)


def test_a_new_seed_each_time_is_one_that_a_request_may_have():
    seeds = {form(randomise=True).request(FACTS).seed for _ in range(20)}
    assert len(seeds) > 15


def test_what_an_earlier_version_called_a_control_is_shown_as_its_detector():
    _, (shown,) = values_of(Request("star", controls=(ControlInput("scribble_xdog"),)), FACTS)
    assert (shown["control"], shown["detector"]) == ("scribble", "xdog")


# Data from outside


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "5", None, [5], {}, 10**400])
def test_only_numbers_are_numbers(value):
    with pytest.raises(ValueError, match="steps must be a number"):
        number("steps", value)


def test_a_whole_number_may_come_with_a_point_as_sliders_send_it():
    assert number("steps", 20.0, whole=True) == 20
    with pytest.raises(ValueError, match="whole number"):
        number("steps", 20.5, whole=True)


def test_a_request_in_json_is_the_request():
    asked = Request(
        "star", controls=(ControlInput("canny", params={"low": 1.5}, scales=(1.0,) * 13),), seed=3
    )

    assert request_of(json.loads(asked.to_json())) == asked


def test_too_many_controls_are_refused_before_they_are_made():
    with pytest.raises(ValueError, match=f"at most {MAX_CONTROLS}"):
        request_of({"prompt": "star", "controls": [{}] * 10_000})
