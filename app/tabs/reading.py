"""From a page's values to what the worker is asked: the form, its pictures, and whether they fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from app.form import Form, ModelFacts
from app.inputs import Given, Inputs, drawn, mask_of, unit_picture, uploaded
from app.page import Served
from app.request_data import MAX_CONTROLS, check_size, typed
from cldm.request import Request


@dataclass(frozen=True)
class Asked:
    """A checked request with its pictures, and the model that is to draw it."""

    request: Request
    inputs: Inputs
    model: str


def form_of(values: Mapping[str, Any]) -> Form:
    """The form in the page's values; units that are off are left out."""
    numbers = [k for k in range(1, MAX_CONTROLS + 1) if k == 1 or values[f"unit{k}_on"] is True]
    return Form(values, [unit_values(k, values) for k in numbers])


def unit_values(number: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of control `number`, counted from 1, by their own names."""
    start = f"unit{number}_"
    return {"number": number} | {
        name.removeprefix(start): value for name, value in values.items() if name.startswith(start)
    }


def facts_of(model: str, served: Served) -> ModelFacts:
    """What the page must know of the model of that name, which need not be loaded."""
    return replace(served.facts, name=model, **served.worker.models.defaults(model))


def read_values(values: Mapping[str, Any], served: Served) -> Asked:
    """What the page's values ask for; ValueError in one sentence for whatever is wrong with them."""
    form, models = form_of(values), served.worker.models
    model = models.check(typed("model", values["model"], str))
    facts = facts_of(model, served)
    request = form.request(facts)
    images = tuple(_picture(unit, served) for unit in form.units)
    init = uploaded(values["init"], served.folder)
    inputs = Inputs(images, init, None if init is None else mask_of(drawn(values["mask"], "mask")))
    if init is None and request.denoise < 1:
        raise ValueError("denoise below 1 changes a start picture: give one, or set it to 1")
    for one in images:
        check_size(request, one.image.shape, facts.resolution)
    return Asked(request, inputs, model)


def _picture(unit: Mapping[str, Any], served: Served) -> Given:
    given = unit_picture(unit["number"], unit, served.folder)
    if given is None:
        raise ValueError(f"control {unit['number']} has no picture: draw one, upload one or take an example")
    return given
