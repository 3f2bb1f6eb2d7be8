"""What a conversion starts from: a file as it is, or anything that loads, under the original names.

Results say of themselves what programs look for in the Stability AI model metadata standard (1.0.0), such as
the architecture; a file of an unknown one gets none of its keys: all or nothing, says the standard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checkpoints.checkpoint import FOLDER, Checkpoint, open_checkpoint
from checkpoints.files.lazy import LazyTensor, Values, lazy
from checkpoints.names.diffusers import COMPONENTS, detect_component
from checkpoints.names.original import context_width
from common.atomic import MIB

SPEC_VERSION = "1.0.0"
ARCHITECTURES = {
    (768, "epsilon"): "stable-diffusion-v1",
    (1024, "epsilon"): "stable-diffusion-v2-512",
    (1024, "v"): "stable-diffusion-v2-768-v",
}
ORIGINAL = "https://github.com/lllyasviel/ControlNet"  # the program whose names the tensors have
SHORT = {"epsilon": "epsilon", "v_prediction": "v"}  # diffusers' word -> the standard's
LONG = {short: long for long, short in SHORT.items()}
KEY = "modelspec."


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
        """Metadata for a file with `state`, made of this one: what this one says and more, no checksums."""
        kept = {key: value for key, value in self.metadata.items() if "hash" not in key}
        short = SHORT.get(self.prediction or "") or kept.get(f"{KEY}prediction_type")
        width = context_width({name: tuple(tensor.shape) for name, tensor in state.items()})
        if width == min(one for one, _ in ARCHITECTURES):
            short = short or "epsilon"  # nobody published another Stable Diffusion 1.x
        if (width, short) not in ARCHITECTURES:
            return kept
        part, branch = detect_component(state), COMPONENTS["controlnet"].prefix
        is_branch = part == "controlnet" or all(name.startswith(branch) for name in state)
        said = {
            "sai_model_spec": SPEC_VERSION,
            "architecture": ARCHITECTURES[width, short] + ("/controlnet" if is_branch else ""),
            "implementation": "diffusers" if part else ORIGINAL,
            "prediction_type": short,
            "title": kept.get(f"{KEY}title", self.path.stem),
        }
        return kept | {KEY + name: value for name, value in said.items()}


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
    prediction = said if isinstance(said, str) else LONG.get(metadata.get(f"{KEY}prediction_type", ""))
    state = {name: lazy(tensor) for name, tensor in tensors.items()}
    return Source(checkpoint.path, state, metadata, prediction, tuple(notes))
