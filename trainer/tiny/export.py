"""Write the tiny model in the published forms: a base file and a control-only file, half precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from cldm.cldm import ControlLDM
from common.atomic import atomic_write

CONTROL_PART = "control_model."
# Prefixes of what a file holds, and the sets of stages that train it: the base file, then the branch's.
PARTS = (
    (("model.", "first_stage_model.", "cond_stage_model."), ({"vae", "base"}, {"vae", "text", "joint"})),
    ((CONTROL_PART,), ({"control"}, {"joint"})),
)


def export(model: ControlLDM, folder: Path, trained: Iterable[str], names: Sequence[str]) -> list[Path]:
    """Write base and branch, called `names`, into `folder`, and return their paths.

    A file is written once all that it holds is `trained`: half of it at random would look like a model.
    """
    stages, state, written = set(trained), model.state_dict(), []
    for name, (prefixes, ways) in zip(names, PARTS, strict=True):
        if any(needed <= stages for needed in ways):
            part = {key: value for key, value in state.items() if key.startswith(prefixes)}
            written.append(_write(folder / name, part))
    return written


def keep_branch(average: Mapping[str, Tensor], folder: Path, step: int) -> Path:
    """Write a branch's weights, under their own names, as control-`step`.safetensors into `folder`."""
    named = {CONTROL_PART + name: value for name, value in average.items()}
    return _write(folder / f"control-{step}.safetensors", named)


def _write(path: Path, state: Mapping[str, Tensor]) -> Path:
    halved = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    tensors = {key: value.contiguous().cpu() for key, value in halved.items()}
    with atomic_write(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt", "made_by": "python -m trainer.tiny"})
    return path
