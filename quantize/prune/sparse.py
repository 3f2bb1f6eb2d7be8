"""2:4 layers on GPUs whose tensor cores skip the zeros; elsewhere they stay dense layers with zeros."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import nn

from quantize.prune.masks import has_two_of_four

log = logging.getLogger(__name__)

CAPABILITY = (8, 0)  # of GPUs with sparse tensor cores
DTYPES = (torch.float16, torch.bfloat16)


def use_sparse_kernels(model: nn.Module, layers: Iterable[str]) -> str:
    """Let the Linear `layers` of `model` compute sparsely where its GPU can; says what was done.

    Inference only, and on that GPU only: move the model before. What torch cannot hold compressed, such as a
    layer of odd size or one that has lost its zeros, stays dense.
    """
    found = [model.get_submodule(name) for name in layers]
    if reason := found and why_dense(found[0].weight):
        return f"{len(found)} layers of 2:4 are computed as dense ones: {reason}"
    done = sum(_compress(layer) for layer in found)
    return f"{done} layers of 2:4 are computed by sparse kernels, {len(found) - done} as dense ones"


def why_dense(weight: torch.Tensor) -> str | None:
    """Why sparse kernels cannot take `weight`, or None."""
    if weight.device.type != "cuda":
        return f"sparse kernels are for CUDA, not {weight.device.type}"
    if weight.dtype not in DTYPES:
        return f"sparse kernels are for half precision, not {str(weight.dtype).removeprefix('torch.')}"
    capability = torch.cuda.get_device_capability(weight.device)
    if capability < CAPABILITY:
        return f"this GPU's capability is {'.'.join(map(str, capability))}, 8.0 is the first with them"
    return None


def _compress(layer: nn.Linear) -> bool:
    if not has_two_of_four(layer.weight):
        return False
    try:
        weight = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
    except (RuntimeError, ValueError) as error:  # sizes that its kernels do not take
        log.debug("%s stays dense: %s", layer, error)
        return False
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return True
