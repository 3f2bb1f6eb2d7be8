"""Where each tensor of a quantized file goes: from names, shapes and plan, before the first number is read.

In narrow files what stays float is half precision: 11 bits, exact for weights published so. Scales of int8
and fp8 are bfloat16, exact too, since `quantize.arithmetic` rounds them before it picks the codes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from common.safetensors_header import Layout
from quantize.selection import Plan
from quantize.spec import LayerSpec, Ranges


def specs_of(model: nn.Module, plan: Plan, ranges: Mapping[str, Ranges]) -> dict[str, LayerSpec]:
    """What the layers of a plan become, by name."""
    return {
        name: LayerSpec.of(model.get_submodule(name), scheme, len(ranges.get(name, [()])))
        for name, scheme in plan.layers.items()
    }


def parameters_of(model: nn.Module) -> set[str]:
    """Names of all tensors that training changes, shared ones under each of their names."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


def layout_of(model: nn.Module, specs: Mapping[str, LayerSpec], *, narrow: bool) -> Layout:
    """The tensors of the file that holds `model` with layers of `specs`. narrow: see above."""
    layout, parameters = {}, parameters_of(model)
    for name, tensor in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if owner in specs and leaf == "weight":
            for part, (shape, dtype) in specs[owner].shapes().items():
                kept = torch.bfloat16 if narrow and part == "scale" else dtype
                layout[f"{owner}.{part}"] = (kept, list(shape))
        else:
            halved = narrow and name in parameters and tensor.dtype == torch.float32
            layout[name] = (torch.float16 if halved else tensor.dtype, list(tensor.shape))
    return layout
