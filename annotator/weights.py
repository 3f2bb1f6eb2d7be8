"""Weights of detectors from disk: tensors and nothing else, whatever a file says of itself."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from common.shell import quote

if TYPE_CHECKING:
    from torch import Tensor, nn

NESTED = "state_dict", "model"  # how some files call the dictionary that holds the tensors


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of one that torch.save wrote, on the CPU.

    No code of the file is run. ValueError in one sentence where it holds no tensors, OSError as `open`.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{path} is no file of weights, or not all of it: fetch it again") from error
    for name in NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(hasattr(one, "shape") for one in content.values()):
        raise ValueError(f"{path} holds something else than tensors by name: fetch it again")
    return content


def fill(network: nn.Module, weights: dict[str, Tensor], path: Path) -> nn.Module:
    """`network` with `weights` of `path`, for use; ValueError in one sentence where they do not fit."""
    own = {name: one.shape for name, one in network.state_dict().items()}
    strange = [name for name, one in weights.items() if own.get(name) != one.shape]
    if wrong := [*strange, *(name for name in own if name not in weights)]:
        raise ValueError(f"{path} is of another network: {quote(wrong)} do not fit")
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)
