"""What a detector is, as data: what it needs, what its map shows, and the range of each of its parameters.

Whatever asks for values (flags, sliders, an API) is made from this data, and `Param.checked` is the one place
that judges them: a request that was stored, typed or sent passes through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Annotate = Callable[..., np.ndarray]  # (image, *, resolution, **params) -> map uint8 [H' W' 3]
Load = Callable[["Path", "torch.device"], Annotate]
FOLDER = Path(__file__).parents[1] / "models" / "annotators"
OURS = "Apache-2.0"  # nothing but code of this project, or of OpenCV
MAX_TEXT = 1_000_000  # characters: 200 people with hands and faces as JSON are below
SWITCH, CHOICE, TEXT, WHOLE, REAL = "switch", "choice", "text", "whole number", "number"


@dataclass(frozen=True)
class Param:
    """One parameter of a detector.

    What it takes follows from `default`: a bool is a switch, a str a text (`help` says of what), a number
    lies from `low` to `high`, and a slider moves by `step`. choices: the values, where there are only a few;
    None among them says that the detector looks for itself.
    """

    default: Any
    low: float | None = None
    high: float | None = None
    step: float | None = None
    help: str = ""
    choices: tuple[Any, ...] = ()

    @property
    def kind(self) -> str:
        """One of SWITCH, CHOICE, TEXT, WHOLE, REAL."""
        if self.choices:
            return CHOICE
        return {bool: SWITCH, str: TEXT, int: WHOLE, float: REAL}[type(self.default)]

    @property
    def allowed(self) -> str:
        """What it takes, for a sentence: `0 to 255`, `auto, yes or no`."""
        if self.kind == TEXT:
            return "a text"
        if self.kind in (WHOLE, REAL):
            whole = "a whole number from " if self.kind == WHOLE else ""
            return f"{whole}{word_of(self.low)} to {word_of(self.high)}"
        *names, last = (word_of(one) for one in self.choices or (True, False))
        return f"{', '.join(names)} or {last}"

    def checked(self, name: str, value: Any) -> Any:
        """`value` as the detector takes it; ValueError in one sentence that says what is allowed."""
        if self.kind in (SWITCH, CHOICE):
            # By the type too: 1 == True, and a stored request is to mean one thing.
            fits = any(type(one) is type(value) and one == value for one in self.choices or (True, False))
        elif self.kind == TEXT:
            fits = isinstance(value, str) and len(value) <= MAX_TEXT
        else:  # nan is in no range
            fits = _is_number(value) and self.low <= value <= self.high
            fits = fits and (self.kind == REAL or value == int(value))
        if fits:
            return {REAL: float, WHOLE: int}[self.kind](value) if self.kind in (REAL, WHOLE) else value
        shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."
        raise ValueError(f"{name}={shown}: it takes {self.allowed}, {word_of(self.default)} is usual")

    def parsed(self, name: str, text: str) -> Any:
        """The value that a command line's word means; ValueError as `checked`."""
        if self.kind in (SWITCH, CHOICE):
            words = {word_of(one): one for one in self.choices or (True, False)}
            return self.checked(name, words.get(text, text))
        if self.kind == TEXT:
            return self.checked(name, text)
        try:
            value = float(text)
        except ValueError:
            value = text
        return self.checked(name, value)


@dataclass(frozen=True)
class Detector:
    """One way from a picture to a control map.

    Either `annotate` does it at once, or `load(folder, device)` returns the function that does, with weights
    from `folder` on `device`; detectors with one `load` share the network and differ by `preset`, what the
    function is told besides. weights: the files or folders in there, all needed; instead: what stands for all
    of them. get: what `tool_download_models.py get` calls them, unless by their names on disk. modules:
    packages that must be installed. licence: of the weights, and of what they were trained with where that
    counts.
    """

    shows: str
    annotate: Annotate | None = None
    load: Load | None = None
    params: Mapping[str, Param] = field(default_factory=dict)
    preset: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    get: str = ""
    modules: tuple[str, ...] = ()
    licence: str = OURS

    def checked(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """`params` in range, for the detector called `name`; ValueError names the one that is not."""
        if unknown := [one for one in params if one not in self.params]:
            words = f"it takes {', '.join(self.params) or 'none'}"
            raise ValueError(f"{name} has no parameter {', '.join(unknown)}: {words}")
        return {one: self.params[one].checked(one, value) for one, value in params.items()}

    @property
    def command(self) -> str:
        """What fetches its weights."""
        return f"python tool_download_models.py get {self.get or ' '.join(self.weights)}"

    def lacks(self, name: str, folder: str | Path | None = None) -> str | None:
        """None where it can be used under the name `name`, else one sentence that says what makes it so."""
        if missing := [module for module in self.modules if find_spec(module) is None]:
            return f'{name} needs the package {" and ".join(missing)}: pip install -e ".[annotators]"'
        folder = Path(folder or FOLDER)
        lacking = [one for one in self.weights if not (folder / one).exists()]
        if lacking and not (self.instead and all((folder / one).exists() for one in self.instead)):
            place = "models/annotators" if folder == FOLDER else folder.as_posix()
            return f"{name} needs {' and '.join(lacking)} in {place}: {self.command}"
        return None

    def find(self, name: str, folder: str | Path | None = None) -> Path:
        """The folder of its weights, None is models/annotators; ValueError with what it `lacks`."""
        if sentence := self.lacks(name, folder):
            raise ValueError(sentence)
        return Path(folder or FOLDER)


def word_of(value: Any) -> str:
    """A value as people write it: auto for None, yes and no, else itself."""
    if value is None or isinstance(value, bool):
        return {None: "auto", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
