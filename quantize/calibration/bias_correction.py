"""The mean error that a layer's quantized weights make, taken out through its bias.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2. The
error of a weight times the mean input is the mean error of the output; it is known before the first call. For
a convolution the mean input is that of each of the kernel's places, zeros of the padding among them, so that
the mean is exact over all positions. Layers without a bias stay as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantize.arithmetic import check_finite
from quantize.selection import Plan
from quantize.spec import LayerSpec


class Means:
    """The mean input of each layer: [in] of a Linear, [in, kh, kw] of a convolution."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def see(self, name: str, x: Tensor) -> None:
        """Take an input of layer `name` into account."""
        layer, values = self._model.get_submodule(name), x.detach().float()
        check_finite(values, f"an input of {name}")
        if isinstance(layer, nn.Conv2d):
            total, count = _sum_of_patches(layer, values)
        else:
            rows = values.reshape(-1, values.shape[-1])
            total, count = rows.sum(dim=0), len(rows)
        self._sums[name] = self._sums.get(name, 0) + total.double().cpu()
        self._counts[name] = self._counts.get(name, 0) + count

    def of(self, name: str) -> Tensor | None:
        """The mean input of a layer, float32; None of one that was never called."""
        count = self._counts.get(name, 0)
        return (self._sums[name] / count).float() if count else None


def correctable(model: nn.Module, plan: Plan) -> list[str]:
    """The layers of a plan that have a bias to correct."""
    modules = dict(model.named_modules())
    return [name for name in plan.layers if getattr(modules[name], "bias", None) is not None]


def corrected_biases(model: nn.Module, plan: Plan, means: Means, clip: str = "mse") -> dict[str, Tensor]:
    """New biases by their names in the float `model`, for the layers whose mean input is known."""
    changed = {}
    for name in correctable(model, plan):
        mean = means.of(name)
        if mean is None:
            continue
        layer = model.get_submodule(name)
        spec = LayerSpec.of(layer, plan.layers[name])
        try:
            values, scale = spec.format.quantize(layer.weight, spec.rule.group, clip)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        lost = layer.weight.detach().float() - spec.format.dequantize(values, scale, spec.shape)
        changed[f"{name}.bias"] = (layer.bias.detach().float() + mean_output(lost, mean)).to(layer.bias.dtype)
    return changed


def mean_output(weight: Tensor, mean: Tensor) -> Tensor:
    """What a weight [out, in / groups, ...] makes of a mean input [in, ...]: [out]."""
    rows = weight.flatten(1)  # [out, in / groups * places]
    groups = mean.numel() // rows.shape[1]
    means = mean.to(weight).reshape(groups, -1)
    return torch.einsum("gok,gk->go", rows.unflatten(0, (groups, -1)), means).flatten()


def _sum_of_patches(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, int]:
    """What lies under each of the kernel's places, summed over all positions [in, kh, kw]; their number."""
    top, left = (0, 0) if layer.padding == "valid" else layer.padding
    padded = F.pad(x.sum(dim=0), (left, left, top, top))  # [in, H, W]
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    height = (padded.shape[1] - dh * (kh - 1) - 1) // sh + 1
    width = (padded.shape[2] - dw * (kw - 1) - 1) // sw + 1

    def under(row: int, column: int) -> Tensor:
        rows = slice(row * dh, row * dh + sh * (height - 1) + 1, sh)
        columns = slice(column * dw, column * dw + sw * (width - 1) + 1, sw)
        return padded[:, rows, columns].sum(dim=(1, 2))

    sums = torch.stack([under(row, column) for row in range(kh) for column in range(kw)], dim=1)
    return sums.unflatten(1, (kh, kw)), len(x) * height * width
