"""Tables of what a compressed file saves and costs, part by part: numbers, bytes, error of the answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from checkpoints.checkpoint import open_checkpoint
from cldm.compressed.pruned import shrink_to_quantized
from cldm.pipeline import Pipeline
from common.atomic import MIB
from ldm.config import create_meta_model
from quantize.arithmetic import sqnr_db
from quantize.calibration.calls import RecordedCall, error_db
from quantize.files.read import load_quantized, read_content
from quantize.model import check_schemes
from quantize.spec import Ranges
from tools.compress.calibration import NETWORKS, TEXT_PART

TOTAL = "total"
# First component of tensors' names -> the part for people.
LABELS = {
    "control_model": "control branch",
    "model": "U-Net",
    "first_stage_model": "autoencoder",
    TEXT_PART: "text encoder",
    TOTAL: TOTAL,
}
Sizes = Mapping[str, tuple[int, int]]  # part -> how many numbers, how many bytes


@dataclass(frozen=True)
class Observed:
    """What the float model did with the calibration pictures; texts: embeddings of their prompts."""

    ranges: Mapping[str, Ranges]
    calls: Mapping[str, list[RecordedCall]]
    prompts: list[str]
    texts: Tensor


def quantized_table(pipeline: Pipeline, config: Path, path: Path, seen: Observed | None) -> str:
    """The parts of a float model beside those of the file `path`; its errors too, where it was run."""
    errors = _errors(pipeline.model.device, config, path, seen) if seen else {}
    return size_table(sizes_of(pipeline.model.state_dict().items()), sizes_of(_stored(path)), errors)


def sizes_of(tensors: Iterable[tuple[str, Any]]) -> Sizes:
    """Numbers and bytes of each part of a state dict, and of all."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, tensor in tensors:
        for part in (name.split(".")[0], TOTAL):
            numbers, size = sizes.get(part, (0, 0))
            sizes[part] = (numbers + math.prod(tensor.shape), size + tensor.nbytes)
    return sizes


def size_table(before: Sizes, after: Sizes, errors: Mapping[str, float] | None = None) -> str:
    """A line for each part. errors: signal over noise in dB, in place of how many numbers are left."""
    head = ("part", "numbers", "MiB", "MiB after", "numbers after" if errors is None else "signal/noise dB")
    lines = [head]
    for part in (*(part for part in LABELS if part in before and part != TOTAL), TOTAL):
        last = f"{after[part][0]:,}" if errors is None else _in_db(errors.get(part))
        mib = (f"{sizes[part][1] / MIB:.2f}" for sizes in (before, after))
        lines.append((LABELS[part], f"{before[part][0]:,}", *mib, last))
    return "\n".join("{:<14}{:>16}{:>11}{:>11}{:>17}".format(*line) for line in lines)


def _errors(device: torch.device, config: Path, path: Path, seen: Observed) -> dict[str, float]:
    quantized = create_meta_model(config).eval()
    shrink_to_quantized(quantized, open_checkpoint(path))
    load_quantized(quantized, path, backend=_backend(path, device), device=device)
    errors = {
        part: error_db(quantized.get_submodule(network), seen.calls[network])
        for part, network in NETWORKS.items()
    }
    return errors | {TEXT_PART: sqnr_db(seen.texts, quantized.get_learned_conditioning(seen.prompts))}


def _backend(path: Path, device: torch.device) -> str | None:
    """The device's best, or the reference where the device cannot compute what the file is for (fp8)."""
    try:
        check_schemes(read_content(path).plan, device)
    except ValueError:
        return "reference"
    return None


def _stored(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  a file, not a dict
            yield name, file.get_tensor(name)


def _in_db(error: float | None) -> str:
    if error is None:
        return "-"
    return "exact" if math.isinf(error) else f"{error:.1f}"
