"""What is measured in `bench.step`, and what a contender is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from bench.files import Files
from bench.harness import FOLDER, ROUNDS, SD15, BenchFlags
from bench.random_weights import WEIGHTS
from common.flags import flag

INSTALL = 'pip install -e ".[bench]"'
Compute = Callable[[], Tensor]  # one denoising step: the predicted noise


@dataclass(frozen=True)
class Setting(BenchFlags):
    """The flags of `bench.step`, and what a contender is told."""

    LOWEST: ClassVar[Mapping[str, int]] = {"settle": 0}
    SHARED: ClassVar[Sequence[str]] = ("config", "size", "batch", "threads", "device", "weights")

    only: tuple[str, ...] = flag((), "contenders (default: all of the device)", metavar="NAME")
    config: Path = flag(SD15, "yaml of the model")
    folder: Path = flag(FOLDER, "of the files")
    weights: str = flag("gaussian", "how they are drawn", choices=tuple(WEIGHTS))
    size: int = flag(512, "side of the picture, pixels")
    batch: int = flag(2, "latents a step, 2 for guidance")
    threads: int = flag(2, "of each contender")  # as many cores as the machine of our tables has
    rounds: int = flag(3, ROUNDS)
    settle: int = flag(1, "untimed runs before each timed one")  # whoever stood still finds cold caches
    peer_python: Path | None = flag(None, "Python that has the peers' packages, if not this", metavar="PATH")
    device: str = flag("cpu", "cpu or cuda")

    @property
    def files(self) -> Files:
        """The weights."""
        return Files(self.config, self.folder, self.weights)


@dataclass(frozen=True)
class Contender:
    """load: what computes a step. files: what it loads; prepare: makes those that are not there.

    needs: packages beyond the project's own. environment: of its process.
    """

    load: Callable[[Setting], Compute]
    files: Callable[[Setting], list[Path]] = lambda setting: [setting.files.weights]
    prepare: Callable[[Setting], object] = lambda setting: setting.files.make_weights()
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def absent(self, setting: Setting) -> str | None:
        """Why it cannot take part, in a sentence; None where it can."""
        missing = [] if setting.peer_python else [name for name in self.needs if find_spec(name) is None]
        return f"{', '.join(missing)} not installed: {INSTALL}" if missing else None
