"""What `generate.py --list` says of controls: their maps, their detectors, and what each of these needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from annotator.detector import TEXT, Param, word_of
from annotator.registry import get_detector, ready
from cldm.controls import CONTROLS

TITLE = "controls, what their maps show, and their detectors, the default first (--detector)"
NAME_WIDTH = 18


def control_lines(folder: Path | None = None) -> Iterator[str]:
    """A line for each control and each of its detectors. folder: of weights, None is models/annotators."""
    yield TITLE
    for name, control in CONTROLS.items():
        yield f"  {name:{NAME_WIDTH + 2}} {control.shows}"
        for detector in control.detectors:
            lacks = ready(detector, folder)
            said = lacks.removeprefix(f"{detector} ") if lacks else _ready(detector)
            yield f"    {detector:{NAME_WIDTH}} {said}"


def _ready(name: str) -> str:
    params = (
        f"{key}={word_of(one.default)} ({_range(one)})" for key, one in get_detector(name).params.items()
    )
    return ", ".join(["ready", *params])


def _range(param: Param) -> str:
    return param.help if param.kind == TEXT else param.allowed
