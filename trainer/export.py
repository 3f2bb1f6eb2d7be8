"""What a run hands out: the trained branch under the original names, and as a folder of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from checkpoints.diffusers.write import write_part
from checkpoints.files.write import write_weights
from checkpoints.names.diffusers import controlnet_to_diffusers
from cldm.cldm import ControlNet

FILE = "control"  # its suffix says the format
METADATA = {"made_by": "tutorial_train.py"}
BRANCH = "control_model."
LAYOUT_PART = "controlnet"


def export_branch(
    branch: nn.Module, learned: Mapping[str, Tensor], params: Mapping[str, Any], out: Path, suffix: str
) -> list[Path]:
    """Write what was learned into `out`; returns the files, the original form first.

    learned: by the names of a whole model; params: its yaml parameters. The layout of diffusers is only for a
    full branch, and holds nothing else that was trained beside it. Errors as `write_weights`.
    """
    state = {f"{BRANCH}{name}": value for name, value in branch.state_dict().items()}
    state = {name: value.detach().cpu().contiguous() for name, value in {**state, **learned}.items()}
    written = [write_weights(out / f"{FILE}.{suffix}", state, metadata=METADATA)]
    if isinstance(branch, ControlNet):
        own = {name.removeprefix(BRANCH): value for name, value in state.items() if name.startswith(BRANCH)}
        write_part(out, LAYOUT_PART, controlnet_to_diffusers(own), params)
        written += [out / "config.json", out / "diffusion_pytorch_model.safetensors"]
    return written
