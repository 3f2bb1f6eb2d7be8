"""Both ends of a conversion: weights on disk under one naming, and the file that they are written to.

Sources are files or folders of diffusers in any form that loads. What is wrong with either end is said before
anything is written. Results say of themselves what programs look for in the Stability AI model metadata
standard (1.0.0), such as the architecture; a file of an unknown one gets none of its keys: all or nothing,
says the standard.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from checkpoints.checkpoint import FOLDER, Checkpoint, open_checkpoint
from checkpoints.diffusers.configs import part_config
from checkpoints.diffusers.folder import CONFIG, INDEX
from checkpoints.files.lazy import LazyTensor, Values, lazy
from checkpoints.files.write import SUFFIXES, write_weights
from checkpoints.names.diffusers import COMPONENTS, detect_component
from checkpoints.names.original import context_width
from checkpoints.surgery import UNET, to_dtype
from common.atomic import MIB
from common.shell import quote
from ldm.util import DTYPES

State = Mapping[str, Values]

SPEC_VERSION = "1.0.0"
ARCHITECTURES = {
    (768, "epsilon"): "stable-diffusion-v1",
    (1024, "epsilon"): "stable-diffusion-v2-512",
    (1024, "v"): "stable-diffusion-v2-768-v",
}
ORIGINAL = "https://github.com/lllyasviel/ControlNet"  # the program whose names the tensors have
SHORT = {"epsilon": "epsilon", "v_prediction": "v"}  # diffusers' word -> the standard's
LONG = {short: long for long, short in SHORT.items()}
KEY = "modelspec."  # in front of each entry of the standard


@dataclass(frozen=True)
class SourceWeights:
    """What a conversion starts from; prediction: of its U-Net in diffusers' words, None where unknown.

    metadata: what a safetensors file says of itself; left_out: sentences about what is not in `state`.
    """

    path: Path
    state: dict[str, LazyTensor]
    metadata: Mapping[str, str]
    prediction: str | None
    left_out: tuple[str, ...]

    def check_prediction(self, params: Mapping[str, Any], config: Path) -> str:
        """What a model of the yaml parameters `params` predicts; ValueError where this U-Net differs."""
        predicts = part_config("scheduler", params)["prediction_type"]
        has_unet = any(name.startswith(UNET) for name in self.state)
        if has_unet and self.prediction not in (None, predicts):
            says = f"says that it predicts {self.prediction}"
            raise ValueError(f"{self.path} {says}, but {config} means {predicts}")
        return predicts

    def about(self, state: State, prediction: str | None = None) -> dict[str, str]:
        """Metadata for a file with `state`, made of this one: what this one says and more, no checksums.

        prediction: in place of this one's.
        """
        kept = {key: value for key, value in self.metadata.items() if "hash" not in key}
        short = SHORT.get(prediction or self.prediction or "") or kept.get(f"{KEY}prediction_type")
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


@dataclass(frozen=True)
class Target:
    """A file or folder to be written. force: over an older one; dtype: such as fp16, None as it is."""

    path: Path
    force: bool = False
    dtype: str | None = None  # of floating weights alone

    def check_file(self, *sources: Path, only: Sequence[str] = SUFFIXES) -> None:
        """Raise ValueError unless one file of a suffix in `only` can be written without harm to `sources`."""
        if self.path.suffix not in only:
            raise ValueError(f"{self.path}: name a file that ends in {' or '.join(only)}")
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder: name a file")
        self._check(sources)

    def check_folder(self, source: Path) -> None:
        """Raise ValueError unless a folder of diffusers can be written without harm to what is there."""
        path = self.path
        if path.suffix in SUFFIXES or path.is_file():
            raise ValueError(f"{path}: the result is a folder, name it without a suffix")
        self._check([source])
        is_ours = any((path / name).is_file() for name in (INDEX, CONFIG))  # what --force may replace
        if path.is_dir() and any(path.iterdir()) and not is_ours:
            raise ValueError(f"{path} holds something other than a model of diffusers: name a new folder")

    def write_file(self, state: State, about: Mapping[str, str], notes: Iterable[str] = ()) -> str:
        """Write `state` with the metadata `about` as one file; what was written, in lines."""
        overflow: Counter[str] = Counter()
        state = self.cast(state, overflow)
        with self.progress([state]) as bar:
            write_weights(self.path, state, metadata=about, on_bytes=bar.update)
        return self.summary([state], notes, overflow)

    def cast(self, state: State, overflow: Counter[str]) -> State:
        """`state` in the dtype to be written; overflow: as `checkpoints.surgery.to_dtype`."""
        return to_dtype(state, DTYPES[self.dtype], overflow) if self.dtype else state

    def progress(self, states: Iterable[State]) -> tqdm:
        """A bar for the bytes of `states`, on a terminal alone."""
        options = {"unit": "B", "unit_scale": True, "disable": None, "leave": False, "delay": 1}
        return tqdm(total=total_bytes(states), **options)

    def summary(self, written: Collection[State], notes: Iterable[str], overflow: Counter[str]) -> str:
        """What was written, in lines; notes: sentences about what is not as it was."""
        count, size = sum(map(len, written)), total_bytes(written) / MIB
        lines = [f"{self.path}: {count} tensors, {size:.1f} MiB", *notes]
        if overflow:
            where = f"{len(overflow)} tensors ({quote(list(overflow))})"
            became = f"are too large for {str(DTYPES[self.dtype]).removeprefix('torch.')} and became infinite"
            lines.append(f"{overflow.total()} values in {where} {became}")
        return "\n".join(lines)

    def _check(self, sources: Iterable[Path]) -> None:
        for source in sources:
            if self.path.exists() and source.exists() and os.path.samefile(self.path, source):
                raise ValueError(f"{self.path} is what goes in: name another file for what comes out")
            if self.path.is_dir() and self.path.resolve() in source.resolve().parents:
                raise ValueError(f"{self.path} holds what goes in, {source.name}: name another folder")
        if self.path.exists() and not self.force:
            raise ValueError(f"{self.path} is there already: --force replaces it")


def open_as_it_is(path: Path) -> SourceWeights:
    """A file under its own names. Raises ValueError for a folder, and as `Checkpoint.tensors`."""
    checkpoint = open_checkpoint(path)
    if checkpoint.header.kind == FOLDER:
        cure = "name the weights file in it, or make it one file by to-original"
        raise ValueError(f"{path} is a folder: {cure}")
    notes = [left_out(*other) for other in checkpoint.header.others.items()]
    return _source(checkpoint, checkpoint.tensors(), notes)


def open_original(source: Path | Checkpoint, *, use_ema: bool = False) -> SourceWeights:
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


def total_bytes(states: Iterable[State]) -> int:
    """Of all tensors in `states`."""
    return sum(tensor.nbytes for state in states for tensor in state.values())


def _source(checkpoint: Checkpoint, tensors: State, notes: Iterable[str]) -> SourceWeights:
    said = checkpoint.settings.get("scheduler", {}).get("prediction_type")
    metadata = checkpoint.header.metadata
    prediction = said if isinstance(said, str) else LONG.get(metadata.get(f"{KEY}prediction_type", ""))
    state = {name: lazy(tensor) for name, tensor in tensors.items()}
    return SourceWeights(checkpoint.path, state, metadata, prediction, tuple(notes))
