"""A request out of data that anybody may have sent: every value is of its type and size before it is used.

`cldm.request.Request` says which values make sense; here is what Python's own types would let through on the
way there: texts for numbers, NaN, numbers with 300 digits, ten thousand controls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from annotator.util import target_size
from app.uploads import MAX_PIXELS, MEGAPIXEL
from cldm.request import MAX_STRENGTH, ControlInput, Request
from common.shell import printable

MAX_CONTROLS = 3  # what the page shows
MAX_PROMPT = 4000  # characters
MAX_NAME = 200
MAX_PARAMS = 16
MAX_SCALES = 64
WHOLE = 2**53  # whole numbers beyond are none in JSON


def request_of(data: Any) -> Request:
    """The request of a JSON object with the fields of `Request`; ValueError in one sentence."""
    values = _values(Request, data, "the request")
    if "prompt" not in values and not values.get("guess_mode"):
        raise ValueError("the request has no prompt: say what to draw, or use guess mode")
    controls = values.pop("controls", [{}])
    if not isinstance(controls, list | tuple):
        raise ValueError("controls must be a list")
    if len(controls) > MAX_CONTROLS:
        raise ValueError(f"{len(controls)} controls: at most {MAX_CONTROLS} go together here")
    return Request(**{"prompt": "", **values}, controls=tuple(map(control_of, controls)))


def control_of(data: Any) -> ControlInput:
    """The control of a JSON object with the fields of `ControlInput`; ValueError in one sentence."""
    values = _values(ControlInput, data, "a control")
    if "params" in values:
        values["params"] = _params(values["params"])
    if values.get("scales") is not None:
        values["scales"] = _scales(values["scales"])
    return ControlInput(**values)


def check_size(request: Request, shape: tuple[int, ...], resolution: int) -> None:
    """ValueError when pictures of `request` drawn from an image of `shape` have more than 4 megapixels.

    resolution: what the model takes where the request leaves it open.
    """
    height, width = target_size(*shape[:2], request.resolution or resolution)
    if height * width > MAX_PIXELS:
        most = MAX_PIXELS // MEGAPIXEL
        words = "lower the resolution, or give a picture that is less long and thin"
        raise ValueError(
            f"the picture would have {width}x{height} pixels, at most {most} megapixels: {words}"
        )


def _values(cls: type, data: Any, what: str) -> dict[str, Any]:
    """The fields of `data`, numbers and texts checked; lists and mappings as they came."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be a JSON object, got {type(data).__name__}")
    hints = get_type_hints(cls)
    known = [one.name for one in fields(cls)]
    if unknown := [printable(name, MAX_NAME) for name in data if name not in known]:
        raise ValueError(f"{what} has no {unknown[0]}: it takes {', '.join(known)}")
    return {name: typed(name, value, hints[name]) for name, value in data.items()}


def typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` (str, bool, int or float, or None too); ValueError in one sentence.

    Other types are left as they are. A whole number may come as 20.0, as sliders send it.
    """
    if get_origin(hint) in (Union, UnionType):
        if value is None:
            return None
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    if hint is str:
        return _text(name, value)
    if hint is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {_shown(value)}")
        return value
    return number(name, value, whole=hint is int) if hint in (int, float) else value


def number(name: str, value: Any, *, whole: bool = False) -> float:
    """`value` as a finite number; ValueError in one sentence."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(_float(value)):
        raise ValueError(f"{name} must be a number, got {_shown(value)}")
    if not whole:
        return float(value)
    if abs(value) > WHOLE or value != int(value):
        raise ValueError(f"{name} must be a whole number, got {_shown(value)}")
    return int(value)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of 400 digits
        return math.inf


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, got {_shown(value)}")
    most = MAX_PROMPT if name in ("prompt", "negative_prompt") else MAX_NAME
    if len(value) > most:
        raise ValueError(f"{name} has {len(value)} characters: at most {most} are read")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half a character (a lone surrogate): type it again") from None
    return value


def _params(params: Any) -> dict[str, Any]:
    if not isinstance(params, Mapping) or len(params) > MAX_PARAMS:
        raise ValueError(f"params must be a JSON object with at most {MAX_PARAMS} values")
    for name, value in params.items():
        if not isinstance(name, str) or not isinstance(value, str | int | float | NoneType):
            raise ValueError(f"params: {_shown(name)} must be a number, a text, true, false or null")
        if isinstance(value, int | float) and not isinstance(value, bool):
            number(f"params: {name}", value)
    return dict(params)


def _scales(scales: Any) -> tuple[float, ...]:
    if not isinstance(scales, list | tuple) or len(scales) > MAX_SCALES:
        raise ValueError(f"scales must be a list of at most {MAX_SCALES} numbers")
    numbers = tuple(number("scales", one) for one in scales)
    if not all(0 <= one <= MAX_STRENGTH for one in numbers):
        raise ValueError(f"scales must lie from 0 to {MAX_STRENGTH}")
    return numbers


def _shown(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        text = "an endless number"
    return printable(text, 40) or "an empty text"
