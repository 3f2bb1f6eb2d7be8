"""Linear, Conv2d and Embedding layers that hold codes and scales, and compute with them through a backend.

The codes are buffers `qweight`, `scale`, and for static inputs `in_scale`, `in_zero`; the bias stays a float
parameter. No float copy of a weight outlives a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantize.activations import QParams, Quantized
from quantize.backends import make_backend
from quantize.cpu.activations import quantize
from quantize.schemes import LayerSpec, Ranges, quantize_tensors
from quantize.timesteps import current_group


class QuantLayer(nn.Module):
    """A layer of `spec` without numbers yet; its backend is the reference until `bind` names another."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.spec = spec
        self._static: tuple[QParams, ...] = ()  # the ranges of inputs, as numbers
        self._static_from: Tensor | None = None  # the tensor that they were read from
        for name, (shape, dtype) in spec.shapes().items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype))
        bias = nn.Parameter(torch.empty(spec.shape[0]), requires_grad=False) if spec.bias else None
        self.register_parameter("bias", bias)
        self.bind("reference")  # so that a layer computes before anybody has chosen

    def bind(self, backend: str) -> None:
        """Compute through `backend` from now on.

        Raises ValueError for an unknown one, and where another one has the weights in its own form already.
        """
        if getattr(self, "_compute", None) is not None and self._compute.packed:
            raise ValueError("the weights are packed for a backend already: load the file again for another")
        self._compute = make_backend(backend, self.spec)

    @property
    def accepts_quantized(self) -> bool:
        """Whether it computes with bytes, so that who makes its input may make them at once."""
        return self.spec.rule.weights == "int8" and self.spec.rule.inputs != "float"

    def input_qparams(self) -> QParams | None:
        """How bytes for it are to be read: of static inputs, for the current group of timesteps, or over all.

        None for dynamic inputs, of which every call looks at its own.
        """
        if self.spec.rule.inputs != "static":
            return None
        if self._static_from is not self.in_scale:  # loading and moving put a new tensor in its place
            pairs = zip(self.in_scale.tolist(), self.in_zero.tolist(), strict=True)
            self._static = tuple(QParams(scale, zero) for scale, zero in pairs)
            self._static_from = self.in_scale
        group = current_group()
        return self._static[0 if group is None or self.spec.ranges == 1 else group + 1]

    def quantize_input(self, x: Tensor | Quantized) -> Quantized:
        """x as bytes, as it is where it has them already.

        Raises ValueError where x has other inputs than the layer: kernels read as many bytes as the weights
        ask for, whether they are there or not. Dynamic schemes look at x and raise ValueError where it holds
        NaN or infinity; static ones do not.
        """
        given = x.values if isinstance(x, Quantized) else x
        inputs, geo = self.spec.shape[1], self.spec.geometry
        axis, expected = (-1, inputs) if geo is None else (1, inputs * geo.groups)
        if (geo is not None and given.ndim != 4) or given.shape[axis] != expected:
            kind = "[..., in]" if geo is None else "[b, in, h, w]"
            raise ValueError(f"x {list(given.shape)}: expected {kind}, of {expected} inputs")
        return x if isinstance(x, Quantized) else quantize(x, self.input_qparams())

    def forward(self, x: Tensor | Quantized, onto: Tensor | None = None) -> Tensor:
        """[..., in] or [b, c, h, w] -> [..., out] or [b, out, h, w], in the dtype of x, float32 for bytes.

        Bytes are taken as they are: whoever made them asked `input_qparams`. onto: what the output is added
        to, of its shape; its memory may be used up for the sum.
        """
        out = self._compute(self, x) if onto is None else self._compute.add(self, x, onto)
        self._drop_packed()
        return out

    def gated(self, x: Tensor | Quantized, qparams: QParams | None) -> Quantized:
        """What `geglu_quantize` makes of the output [..., out]: bytes [..., out / 2]."""
        out = self._compute.gated(self, x, qparams)
        self._drop_packed()
        return out

    def prepare(self) -> None:
        """Let a backend that has its own form of the weights make it now, and not at the first call."""
        self._compute.pack(self)
        self._drop_packed()

    def extra_repr(self) -> str:
        """Scheme and shape."""
        return f"{self.spec.scheme}, weight {list(self.spec.shape)}, bias={self.spec.bias}"

    def _drop_packed(self) -> None:
        if self._buffers["qweight"] is not None and self._compute.packed:
            self.qweight = None  # the backend has them; both together would take twice the memory

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLayer:
        """As of any module, but codes and scales keep their dtype: `.half()` is about the float tensors."""
        before = dict(self._buffers)  # with their dtypes, which super() may change
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)  # moved, not converted
        return self

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.qweight is None:
            raise ValueError("the weights are packed for this machine's backend: save before the first call")
        super()._save_to_state_dict(*args, **kwargs)


class QuantLinear(QuantLayer):
    """In place of `nn.Linear`."""


class QuantConv2d(QuantLayer):
    """In place of `nn.Conv2d`."""


class QuantEmbedding(QuantLayer):
    """In place of `nn.Embedding`; rows are decoded as they are looked up.

    out_dtype: of the rows; it changes with the module's, as that of a float table would.
    """

    out_dtype = torch.float32

    def forward(self, ids: Tensor) -> Tensor:
        """Whole numbers of any shape -> [..., d]."""
        return super().forward(ids).to(self.out_dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLayer:
        self.out_dtype = fn(torch.empty(0, dtype=self.out_dtype, device=self.scale.device)).dtype
        return super()._apply(fn, recurse)


def empty_layer(spec: LayerSpec) -> QuantLayer:
    """The layer of `spec`, its numbers still to come."""
    if spec.table:
        return QuantEmbedding(spec)
    return QuantLinear(spec) if spec.geometry is None else QuantConv2d(spec)


def quantize_layer(
    layer: nn.Module, scheme: str, ranges: Ranges | None = None, clip: str = "mse"
) -> QuantLayer:
    """The quantized layer that answers nearly as `layer`; it shares nothing with it.

    Errors as `LayerSpec.of` and `quantize_tensors`.
    """
    spec = LayerSpec.of(layer, scheme, len(ranges) if ranges else 1)
    tensors: Mapping[str, Tensor] = quantize_tensors(spec, layer.weight, ranges, clip)
    made = empty_layer(spec)
    for name, tensor in tensors.items():
        setattr(made, name, tensor)
    if isinstance(made, QuantEmbedding):
        made.out_dtype = layer.weight.dtype
    if spec.bias:
        made.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return made.train(layer.training)  # as the layer whose place it takes
