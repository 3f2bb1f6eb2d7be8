"""Write the tiny model in the published forms: a base file and a control-only file, half precision."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file

from cldm.cldm import ControlLDM

BASE_PARTS = ("model.", "first_stage_model.", "cond_stage_model.")
CONTROL_PART = "control_model."
# A file is written once all that it holds is trained: half of it at random would look like a model.
FILES = {
    "tiny.safetensors": (BASE_PARTS, {"vae", "base"}),
    "tiny_control.safetensors": ((CONTROL_PART,), {"control"}),
}


def export(model: ControlLDM, folder: Path, trained: Iterable[str]) -> list[Path]:
    """Write those of `FILES` whose stages are all in `trained` into `folder`; returns their paths."""
    stages = set(trained)
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    written = []
    for name, (parts, needed) in FILES.items():
        if not needed <= stages:
            continue
        path, partial = folder / name, folder / f"{name}.partial"
        tensors = {key: value.contiguous().cpu() for key, value in state.items() if key.startswith(parts)}
        save_file(tensors, partial, metadata={"format": "pt", "made_by": "python -m models.train_tiny"})
        os.replace(partial, path)
        written.append(path)
    return written
