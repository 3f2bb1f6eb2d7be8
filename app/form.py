"""What stands in the page's fields, the request that it means, and the way back from a request to the fields.

`Form` holds raw values, as a browser sent them: whatever is wrong with them is said by `Form.request`. Two
fields of the page stand for others of a request: `importance`, of the prompt against the control, and
`randomise`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from annotator.detector import CHOICE, REAL, SWITCH, TEXT, WHOLE, Detector, Param, word_of
from annotator.registry import DETECTORS
from app.request_data import control_of, number, request_of, typed
from cldm.controls import pick_detector
from cldm.request import MAX_SEED, ControlInput, Request
from cldm.sampling import control_scales

BALANCED, PROMPT, CONTROL = "balanced", "prompt", "control"
IMPORTANCE = {BALANCED: None, PROMPT: False, CONTROL: True}  # -> guided_control; None is the model's own
UPLOAD, DRAWING, EXAMPLE = "upload", "draw", "example"
SOURCES = (UPLOAD, DRAWING, EXAMPLE)
OWN_BRANCH = "own"
CLOSE = 1e-6  # scales that were written and read again
# Fields of the page that are fields of `Request` under the same name, and those of a unit of `ControlInput`.
PLAIN = (
    "prompt", "negative_prompt", "num_samples", "resolution", "steps", "sampler", "scale", "eta",
    "guess_mode", "denoise", "guidance_start", "guidance_end", "reuse_every", "reuse_cut", "control_every",
)  # fmt: skip
UNIT_PLAIN = ("control", "strength", "start", "end")
# Detectors have different parameters; the page has slots for them, some of each kind.
SLOT_OF = {WHOLE: "number", REAL: "number", CHOICE: "choice", SWITCH: "switch", TEXT: "text"}


@dataclass(frozen=True)
class ModelFacts:
    """What the page must know of a model. residuals: how many its branch adds; branches: further ones."""

    name: str
    resolution: int
    scale: float
    guided_control: bool
    residuals: int
    branches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """All fields that say what is drawn. values: by name; units: those of each control that is on."""

    values: Mapping[str, Any]
    units: Sequence[Mapping[str, Any]]

    def request(self, facts: ModelFacts) -> Request:
        """The request that the fields mean for a model of `facts`; ValueError in one sentence."""
        values = self.values
        if typed("importance", values["importance"], str) not in IMPORTANCE:
            raise ValueError(
                f"importance {values['importance']!r} is not known: choose from {', '.join(IMPORTANCE)}"
            )
        data = {name: values[name] for name in PLAIN}
        data["seed"] = secrets.randbelow(MAX_SEED) if values["randomise"] is True else values["seed"]
        data["clip_skip"] = number("clip_skip", values["clip_skip"], whole=True) or None
        data["guided_control"] = IMPORTANCE[values["importance"]]
        controls = (control_input(unit, values["importance"], facts.residuals) for unit in self.units)
        return replace(request_of({**data, "controls": []}), controls=tuple(controls))


def slots_of(detector: Detector | None) -> dict[str, str]:
    """Which slot of the page each parameter of `detector` takes: name -> such as `number1`."""
    taken: dict[str, str] = {}
    for name, param in (detector.params if detector else {}).items():
        kind = SLOT_OF[param.kind]
        taken[name] = f"{kind}{sum(slot.startswith(kind) for slot in taken.values()) + 1}"
    return taken


ALL_SLOTS = tuple(sorted({slot for one in DETECTORS.values() for slot in slots_of(one).values()}))


def shown_value(param: Param, value: Any) -> Any:
    """`value` of a parameter as its slot has it: choices are words."""
    return word_of(value) if param.kind == CHOICE else value


def values_of(request: Request, facts: ModelFacts) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The page's fields for a complete `request`, and those of each unit.

    ValueError in one sentence when the page has no fields for what the request says.
    """
    importance = _importance(request, facts)
    values = {name: getattr(request, name) for name in PLAIN}
    values |= {"seed": request.seed, "randomise": False, "importance": importance}
    values["clip_skip"] = request.clip_skip or 0
    return values, [_unit_values(one) for one in request.controls]


def control_input(unit: Mapping[str, Any], importance: str = BALANCED, residuals: int = 0) -> ControlInput:
    """The control that a unit's fields mean; ValueError in one sentence. residuals: that a branch adds."""
    made = {name: unit[name] for name in UNIT_PLAIN}
    made["branch"] = None if unit["branch"] == OWN_BRANCH else unit["branch"]
    made["preprocess"] = not typed("ready", unit["ready"], bool)
    if made["preprocess"]:
        made["detector"] = pick_detector(
            typed("control", unit["control"], str), typed("detector", unit["detector"], str | None)
        )
        made["params"] = _params(DETECTORS[made["detector"]], unit)
    if importance == PROMPT:
        strength = number("strength", unit["strength"])
        made["scales"] = control_scales(strength, residuals, guess_mode=True)
    return control_of(made)


def _params(detector: Detector, unit: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in the slots of `detector`, in range; usual values are left out."""
    params = {}
    for name, slot in slots_of(detector).items():
        param, value = detector.params[name], unit[slot]
        is_word = param.kind == CHOICE and isinstance(value, str)
        value = param.parsed(name, value) if is_word else param.checked(name, value)
        if value != param.default:
            params[name] = value
    return params


def _unit_values(control: ControlInput) -> dict[str, Any]:
    values = {name: getattr(control, name) for name in UNIT_PLAIN}
    values |= {"branch": control.branch or OWN_BRANCH, "ready": not control.preprocess, "detector": None}
    if control.preprocess:
        name = pick_detector(control.control, control.detector)
        detector, values["detector"] = DETECTORS[name], name
        for param, slot in slots_of(detector).items():
            value = control.params.get(param, detector.params[param].default)
            values[slot] = shown_value(detector.params[param], value)
    if values["control"] == "scribble_xdog":  # what requests of earlier versions call it
        values["control"] = "scribble"
    return values


def _importance(request: Request, facts: ModelFacts) -> str:
    """Which of the page's words stands for how `request` weighs control and prompt."""
    faded = [_is_faded(one) for one in request.controls]
    plain = all(one.scales is None for one in request.controls)
    if plain and request.guided_control in (None, facts.guided_control):
        return BALANCED
    if plain and request.guided_control:
        return CONTROL
    if faded and all(faded) and not request.guided_control:
        return PROMPT
    raise ValueError(
        "the request weighs its control in a way that the page has no field for: use generate.py --from"
    )


def _is_faded(control: ControlInput) -> bool:
    if control.scales is None:
        return False
    faded = control_scales(control.strength, len(control.scales), guess_mode=True)
    return all(abs(one - other) < CLOSE for one, other in zip(control.scales, faded, strict=True))
