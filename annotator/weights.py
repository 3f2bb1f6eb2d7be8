"""Weights of detectors from disk: tensors and nothing else, whatever a file says of itself."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from common.shell import quote

if TYPE_CHECKING:
    from torch import Tensor, nn

NESTED = "state_dict", "model"  # how some files call the dictionary that holds the tensors
PARALLEL = "module."  # what training on several GPUs puts before the names
COUNTER = "num_batches_tracked"  # of batch norms, for training alone: files from before torch 0.4.1 have none


class WrongWeights(ValueError):
    """A file or folder that is not what its name says, in a sentence that ends with what to do."""

    def __init__(self, sentence: str) -> None:
        super().__init__(f"{sentence}: fetch it again")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of one that torch.save wrote, on the CPU.

    No code of the file is run. WrongWeights in one sentence where it holds no tensors, OSError as `open`.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise WrongWeights(f"{path} is no file of weights, or not all of it") from error
    for name in NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(hasattr(one, "shape") for one in content.values()):
        raise WrongWeights(f"{path} holds something else than tensors by name")
    return {str(name).removeprefix(PARALLEL): one for name, one in content.items()}


def fill(network: nn.Module, weights: dict[str, Tensor], path: Path) -> nn.Module:
    """`network` with `weights` of `path`, for use; WrongWeights in one sentence where they do not fit."""
    import torch

    own = {name: one.shape for name, one in network.state_dict().items() if not name.endswith(COUNTER)}
    given = {name: one for name, one in weights.items() if not name.endswith(COUNTER)}
    strange = [name for name, one in given.items() if own.get(name) != one.shape]
    if wrong := [*strange, *(name for name in own if name not in given)]:
        raise WrongWeights(f"{path} is of another network: {quote(wrong)} do not fit")
    state = {name: one.float() for name, one in given.items()}
    state |= {name: torch.zeros((), dtype=torch.long) for name in network.state_dict() if name not in own}
    # Not by the network's own method: ZoeDepth has one that passes over what does not fit.
    torch.nn.Module.load_state_dict(network, state, assign=True)
    return network.eval().requires_grad_(False)
