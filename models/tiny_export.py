"""Write the tiny model in the published forms: a base file and a control-only file, half precision."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import save_file

from cldm.cldm import ControlLDM

BASE_PARTS = ("model.", "first_stage_model.", "cond_stage_model.")
CONTROL_PART = "control_model."


def export(model: ControlLDM, folder: Path) -> list[Path]:
    """Write `tiny.safetensors` and `tiny_control.safetensors` into `folder`; returns their paths."""
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    files = {"tiny.safetensors": BASE_PARTS, "tiny_control.safetensors": (CONTROL_PART,)}
    written = []
    for name, parts in files.items():
        path, partial = folder / name, folder / f"{name}.partial"
        tensors = {key: value.contiguous().cpu() for key, value in state.items() if key.startswith(parts)}
        save_file(tensors, partial, metadata={"format": "pt", "made_by": "python -m models.train_tiny"})
        os.replace(partial, path)
        written.append(path)
    return written
