"""The rows of the table that `python -m quantize` prints: bytes of each part, error of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from checkpoints.checkpoint import open_checkpoint
from cldm.compressed.pruned import shrink_to_quantized
from ldm.config import create_meta_model
from quantize.arithmetic import sqnr_db
from quantize.calibration.bias_correction import Means
from quantize.calibration.report import Call, Row, error_db, part_sizes
from quantize.files.read import load_quantized, read_content
from quantize.model import check_schemes
from quantize.spec import Ranges
from tools.compress.calibration import NETWORKS, TEXT_PART

if TYPE_CHECKING:
    from cldm.pipeline import Pipeline

LABELS = {
    "control_model": "control branch",
    "model": "U-Net",
    "first_stage_model": "autoencoder",
    TEXT_PART: "text encoder",
}


@dataclass(frozen=True)
class Seen:
    """What the float model did with the calibration pictures; texts: embeddings of their prompts."""

    ranges: Mapping[str, Ranges]
    calls: Mapping[str, list[Call]]
    prompts: list[str]
    texts: Tensor
    means: Means


def rows_of(pipeline: Pipeline, config: Path, path: Path, seen: Seen | None) -> list[Row]:
    """A row for each part of a model; errors are those of the file that was written, None without `seen`."""
    device = pipeline.model.device
    rows = [row for row in part_sizes(pipeline.model, path) if row.part in LABELS]
    errors: dict[str, float] = {}
    if seen:
        quantized = create_meta_model(config).eval()
        shrink_to_quantized(quantized, open_checkpoint(path))
        load_quantized(quantized, path, backend=_backend(path, device), device=device)
        for part, network in NETWORKS.items():
            errors[part] = error_db(quantized.get_submodule(network), seen.calls[network])
        errors[TEXT_PART] = sqnr_db(seen.texts, quantized.get_learned_conditioning(seen.prompts))
    return [replace(row, part=LABELS[row.part], error_db=errors.get(row.part)) for row in rows]


def _backend(path: Path, device: torch.device) -> str | None:
    """The device's best, or the reference where the device cannot compute what the file is for (fp8)."""
    try:
        check_schemes(read_content(path).plan, device)
    except ValueError:
        return "reference"
    return None
