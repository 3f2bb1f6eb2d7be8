"""What a conversion starts from: a file as it is, or anything that loads, under the original names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checkpoints.checkpoint import FOLDER, Checkpoint, open_checkpoint
from checkpoints.files.lazy import LazyTensor, Values, lazy
from checkpoints.model_spec import describe, prediction_in
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


def open_as_it_is(source: Path | Checkpoint) -> Source:
    """A file under its own names. Raises ValueError for a folder, and as `Checkpoint.tensors`."""
    checkpoint = open_checkpoint(source)
    if checkpoint.header.kind == FOLDER:
        raise ValueError(
            f"{checkpoint.label} is a folder: name the weights file in it, or make it one file by to-original"
        )
    notes = [left_out(*other) for other in checkpoint.header.others.items()]
    return _source(checkpoint, checkpoint.tensors(), notes)


def open_original(source: Path | Checkpoint, *, use_ema: bool = False) -> Source:
    """Anything that loads, under the original names; use_ema: moving averages in their weights' place.

    Raises as `Checkpoint.weights`; ValueError too where there are no moving averages.
    """
    checkpoint = open_checkpoint(source)
    weights = checkpoint.weights(use_ema=use_ema)
    if use_ema and not weights.averaged:
        raise ValueError(f"{checkpoint.label} has no moving averages inside: leave out --use-ema")
    notes = [f"left out {count} tensors: {reason}" for reason, count in weights.dropped.items()]
    return _source(checkpoint, weights.state, notes)


def left_out(what: str, size: int, count: int | None = None) -> str:
    """A line such as `left out optimizer_states: 6874.5 MiB`."""
    tensors = "" if count is None else f"{count} tensors, "
    return f"left out {what}: {tensors}{size / MIB:.1f} MiB"


def _source(checkpoint: Checkpoint, tensors: Mapping[str, Values], notes: list[str]) -> Source:
    said = checkpoint.settings.get("scheduler", {}).get("prediction_type")
    metadata = checkpoint.header.metadata
    prediction = said if isinstance(said, str) else prediction_in(metadata)
    state = {name: lazy(tensor) for name, tensor in tensors.items()}
    return Source(checkpoint.path, state, metadata, prediction, tuple(notes))
