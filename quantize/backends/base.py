"""What a backend is, and what all of them share: bringing a layer's inputs to bytes."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Protocol

import torch
from torch import Tensor

from quantize.activations import QParams, Quantized
from quantize.cpu import activations as kernels
from quantize.spec import LayerSpec
from quantize.timesteps import current_group

Buffers = MutableMapping[str, Tensor | None]  # a layer's tensors by name


class Backend(Protocol):
    """Computes one layer.

    packed: whether it has the weights in a form of its own, so that the layer's may go.

    It may have three methods more: `pack(buffers)` makes that form ahead of the first call;
    `add(x, buffers, bias, onto)` gives the sum of `onto` and the output, in the memory of `onto` if it likes;
    `gated(x, buffers, bias, qparams)` gives what `geglu_quantize` makes of the output.
    """

    packed: bool

    def __init__(self, spec: LayerSpec) -> None: ...

    def __call__(self, x: Tensor | Quantized, buffers: Buffers, bias: Tensor | None) -> Tensor:
        """The layer's output in the dtype of x, float32 for bytes; buffers: the layer's tensors by name."""
        ...

    @classmethod
    def computes(cls, spec: LayerSpec) -> bool:
        """Whether it has an own way for the scheme of `spec`."""
        ...


class Inputs:
    """How a layer's inputs become bytes; ranges from calibration are read from its tensors once."""

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec
        self._read_from: Tensor | None = None
        self._static: tuple[QParams, ...] = ()

    def qparams(self, buffers: Buffers) -> QParams | None:
        """Of static inputs: for the current group of timesteps, or over all where there is no group.

        None for dynamic inputs, of which every call looks at its own.
        """
        if self.spec.rule.inputs != "static":
            return None
        if self._read_from is not buffers["in_scale"]:  # loading and moving put a new tensor in its place
            pairs = zip(buffers["in_scale"].tolist(), buffers["in_zero"].tolist(), strict=True)
            self._static = tuple(QParams(scale, zero) for scale, zero in pairs)
            self._read_from = buffers["in_scale"]
        group = current_group()
        return self._static[0 if group is None or self.spec.ranges == 1 else group + 1]

    def quantize(self, x: Tensor | Quantized, buffers: Buffers) -> Quantized:
        """x as bytes, as it is where it has them already.

        Raises ValueError where x has other inputs than the layer. Dynamic schemes look at x and raise
        ValueError where it holds NaN or infinity; static ones do not.
        """
        self._check(x.values if isinstance(x, Quantized) else x)
        if isinstance(x, Quantized):
            return x
        return kernels.quantize(x, self.qparams(buffers))

    def _check(self, x: Tensor) -> None:
        """Kernels read as many bytes as the weights ask for, whether they are there or not."""
        inputs, geo = self.spec.shape[1], self.spec.geometry
        axis, expected = (-1, inputs) if geo is None else (1, inputs * geo.groups)
        if (geo is not None and x.ndim != 4) or x.shape[axis] != expected:
            kind = "[..., in]" if geo is None else "[b, in, h, w]"
            raise ValueError(f"x {list(x.shape)}: expected {kind}, of {expected} inputs")


def out_dtype(x: Tensor | Quantized) -> torch.dtype:
    """Of a layer's output for the input x."""
    return torch.float32 if isinstance(x, Quantized) else x.dtype
