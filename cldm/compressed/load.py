"""Models from quantized files: the yaml says what is built, the file holds its codes."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig

from checkpoints.checkpoint import open_checkpoint
from cldm.cldm import ControlLDM
from cldm.compressed.fuse_cpu import fuse_cpu
from cldm.compressed.fuse_cuda import fuse_cuda
from cldm.compressed.pruned import shrink_to_quantized
from common.memory import keep_freed_memory
from ldm.config import create_meta_model
from quantize.files.read import load_quantized, read_content
from quantize.selection import fingerprint


def load_quantized_model(
    config: str | Path | DictConfig,
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> ControlLDM:
    """The model of a yaml with the weights of a file of `python -m quantize`, ready to run on `device`.

    They stay in their codes; what lies between them is joined (`cldm.compressed.fuse_cpu`,
    `cldm.compressed.fuse_cuda`). dtype: of what is float. Errors as `cldm.model.create_model` and
    `quantize.files.read.load_quantized`.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        keep_freed_memory()
    model = create_meta_model(config)
    if read_content(path).plan.fingerprint != fingerprint(model):
        shrink_to_quantized(model, open_checkpoint(path))
    load_quantized(model, path, device=device, dtype=dtype)
    model.eval()
    if kind == "cpu":
        fuse_cpu(model)
    if kind == "cuda":
        fuse_cuda(model)
    return model
