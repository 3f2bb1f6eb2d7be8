"""Control branches by the names of their files: what each steers by, and what it is called here."""

from collections.abc import Iterable
from pathlib import Path

from checkpoints.names.controls import control_kind, file_stem
from cldm.controls import CONTROLS


def control_of_file(path: str | Path) -> str | None:
    """The control that weights of this name were trained for; None where the name does not tell."""
    kind = control_kind(path)
    if kind is None or kind in CONTROLS:
        return kind
    old = (name for name, control in CONTROLS.items() if control.stem_10 == f"control_sd15_{kind}")
    return next(old, None)


def branch_names(paths: Iterable[str | Path]) -> dict[str, str | Path]:
    """The files by what their branches are called; ValueError where two would be called the same."""
    named: dict[str, str | Path] = {}
    for path in paths:
        if Path(named.setdefault(file_stem(path), path)) != Path(path):
            raise ValueError(f"two branches are called {file_stem(path)!r}: rename one of the files")
    return named
