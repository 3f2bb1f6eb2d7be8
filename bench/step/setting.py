"""What is measured in `bench.step`, and what a contender is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bench.step.files import Files

if TYPE_CHECKING:
    from torch import Tensor

INSTALL = 'pip install -e ".[bench]"'
# One denoising step, or one picture: what it computed, and seconds by part of it.
Run = Callable[[], tuple["Tensor", Mapping[str, float]]]


@dataclass(frozen=True)
class Setting:
    """What is measured. size: pixels of a side; batch: latents a step, 2 is one picture with guidance.

    picture: whether whole pictures of `steps` steps are made, one at a time, in place of single steps.
    weights: of `bench.step.weights.WEIGHTS`. rules: of the contenders that have some.
    """

    config: Path
    folder: Path
    size: int = 512
    batch: int = 2
    threads: int = 2
    device: str = "cpu"
    picture: bool = False
    steps: int = 20
    weights: str = "gaussian"
    rules: tuple[str, ...] = ()

    @property
    def files(self) -> Files:
        """The weights."""
        return Files(self.config, self.folder, self.weights)


@dataclass(frozen=True)
class Contender:
    """step, picture: load what computes one; picture is None where it cannot.

    files: what it loads; prepare: makes those that are not there. needs: packages beyond the project's own.
    environment: of its process. ruled: whether the setting's rules are what it is about.
    """

    step: Callable[[Setting], Run]
    picture: Callable[[Setting], Run] | None = None
    files: Callable[[Setting], list[Path]] = lambda setting: [setting.files.weights]
    prepare: Callable[[Setting], object] = lambda setting: setting.files.make_weights()
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ruled: bool = False

    def load(self, setting: Setting) -> Run:
        """What `setting` asks for, ready to run."""
        return (self.picture if setting.picture else self.step)(setting)


def missing(contender: Contender) -> str | None:
    """One sentence about packages that are not installed here, None where all are."""
    absent = [name for name in contender.needs if find_spec(name) is None]
    return f"{', '.join(absent)} not installed: {INSTALL}" if absent else None
