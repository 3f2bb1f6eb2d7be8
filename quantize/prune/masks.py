"""2:4 pruning: weights that become zeros in a network of the same shapes.

A dense file with zeros is no smaller and a dense product no faster: what they are worth is said by who stores
or multiplies them. Two zeros in every four neighbours is what sparse tensor cores multiply at up to twice the
rate (Mishra et al. 2021, "Accelerating sparse deep neural networks"); elsewhere such layers stay dense.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

GROUP, ZEROS = 4, 2  # of every four neighbours along a layer's inputs, two are zero
CAPABILITY = (8, 0)  # of GPUs with sparse tensor cores
HALVES = (torch.float16, torch.bfloat16)  # types of activations that sparse tensor cores take


def two_of_four(weight: Tensor) -> Tensor:
    """`weight` [out, in] with zeros for the two smallest of every four inputs; of equals the first stay.

    Raises ValueError where four do not divide the inputs.
    """
    if reason := why_not_two_of_four(weight):
        raise ValueError(f"a weight of shape {list(weight.shape)} cannot be 2:4: {reason}")
    quads = weight.reshape(-1, GROUP)  # [out * in / 4, 4]
    order = quads.float().abs().argsort(dim=1, descending=True, stable=True)
    return quads.scatter(1, order[:, ZEROS:], 0).reshape(weight.shape)


def has_two_of_four(weight: Tensor) -> bool:
    """Whether of every four inputs two at least are zero."""
    if why_not_two_of_four(weight):
        return False
    return bool(((weight.reshape(-1, GROUP) == 0).sum(dim=1) >= ZEROS).all())


def why_not_two_of_four(weight: Tensor) -> str | None:
    """Why a weight cannot have the pattern, or None."""
    if weight.ndim != 2:
        return "sparse kernels multiply matrices, those of nn.Linear"
    return None if weight.shape[1] % GROUP == 0 else f"its inputs are not groups of {GROUP}"


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


def why_dense(weight: Tensor) -> str | None:
    """Why sparse kernels cannot take `weight`, or None."""
    if weight.device.type != "cuda":
        return f"sparse kernels are for CUDA, not {weight.device.type}"
    if weight.dtype not in HALVES:
        return f"sparse kernels are for half precision, not {str(weight.dtype).removeprefix('torch.')}"
    capability = torch.cuda.get_device_capability(weight.device)
    if capability < CAPABILITY:
        return f"this GPU's capability is {'.'.join(map(str, capability))}, 8.0 is the first with them"
    return None


def keep_zeros(model: nn.Module, layers: Iterable[str]) -> None:
    """Let what is zero in the weights of `layers` stay so in training: their gradients are zero too.

    What does not learn at this moment is passed over. For optimizers of which a step is zero where all
    gradients so far and the weight were, as AdamW's and SGD's.
    """
    for name in layers:
        weight = model.get_parameter(f"{name}.weight")
        if not weight.requires_grad:
            continue
        alive = weight.detach() != 0  # now, before the first step
        weight.register_hook(lambda gradient, alive=alive: gradient * alive)


def share_of_zeros(weights: Iterable[Tensor]) -> float:
    """Zeros among all numbers, 0 to 1."""
    counts = [(int((one == 0).sum()), one.numel()) for one in weights]
    return sum(zeros for zeros, _ in counts) / max(1, sum(size for _, size in counts))


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
