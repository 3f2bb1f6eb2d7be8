"""What a conversion starts from: a file as it is, or anything that loads, under the original names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checkpoints.diffusers.check import SCHEDULER
from checkpoints.diffusers.folder import find_components, open_weights, read_settings
from checkpoints.files.lazy import LazyTensor, Values, lazy
from checkpoints.files.read import open_weight_file
from checkpoints.load import open_source
from checkpoints.model_spec import describe, prediction_in
from checkpoints.names.diffusers import detect_component
from common.atomic import MIB


@dataclass(frozen=True)
class Source:
    """Weights on disk; prediction: of its U-Net in diffusers' words, None where that is not known.

    metadata: what a safetensors file says of itself; left_out: sentences about what is not in `state`.
    """

    path: Path
    state: dict[str, LazyTensor]
    metadata: Mapping[str, str]
    prediction: str | None
    left_out: tuple[str, ...]

    def about(self, state: Mapping[str, Values]) -> dict[str, str]:
        """Metadata for a file with `state`, which was made of this one."""
        return describe(state, self.path.stem, self.metadata, self.prediction)


def open_as_it_is(path: Path) -> Source:
    """A file under its own names. Raises ValueError for a folder, and as `open_weight_file`."""
    if find_components(path):
        raise ValueError(
            f"{path} is a folder: name the weights file in it, or make it one file by to-original"
        )
    file = open_weight_file(path)
    return _source(path, file.tensors, file.metadata, [left_out(*other) for other in file.others.items()])


def open_original(path: Path, *, use_ema: bool = False) -> Source:
    """Anything that loads, under the original names; use_ema: moving averages in their weights' place.

    Raises as `checkpoints.load.open_source`; ValueError too where there are no moving averages.
    """
    opened = open_source(path)
    if use_ema:
        opened = open_source(path, ema_of=tuple(opened.state))
        if not opened.averaged:
            raise ValueError(f"{path} has no moving averages inside: leave out --use-ema")
    notes = [f"left out {count} tensors: {reason}" for reason, count in opened.dropped.items()]
    return _source(path, opened.state, opened.metadata, notes)


def has_diffusers_names(path: Path) -> bool:
    """Whether it is a folder in diffusers' form, or a file of one part under diffusers' names."""
    return bool(find_components(path) or detect_component(open_weights(path).tensors))


def left_out(what: str, size: int, count: int | None = None) -> str:
    """A line such as `left out optimizer_states: 6874.5 MiB`."""
    tensors = "" if count is None else f"{count} tensors, "
    return f"left out {what}: {tensors}{size / MIB:.1f} MiB"


def _source(
    path: Path, tensors: Mapping[str, Values], metadata: Mapping[str, str], notes: list[str]
) -> Source:
    said = read_settings(path / SCHEDULER).get("prediction_type") if path.is_dir() else None
    prediction = said if isinstance(said, str) else prediction_in(metadata)
    return Source(path, {name: lazy(t) for name, t in tensors.items()}, metadata, prediction, tuple(notes))
