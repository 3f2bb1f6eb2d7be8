"""Write the tiny model in the published forms: a base file and a control-only file, half precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from checkpoints.files.write import write_weights
from cldm.cldm import ControlLDM

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
            written.append(write_half(folder / name, part))
    return written


def keep_branch(average: Mapping[str, Tensor], folder: Path, step: int) -> Path:
    """Write a branch's weights, under their own names, as control-`step`.safetensors into `folder`."""
    named = {CONTROL_PART + name: value for name, value in average.items()}
    return write_half(folder / f"control-{step}.safetensors", named)


def write_half(path: Path, state: Mapping[str, Tensor], made_by: str = "trainer.tiny", **about: str) -> Path:
    """Write `state` in half precision; about: more of the file's metadata."""
    halved = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    tensors = {key: value.cpu() for key, value in halved.items()}
    return write_weights(path, tensors, metadata={"made_by": f"python -m {made_by}", **about})
