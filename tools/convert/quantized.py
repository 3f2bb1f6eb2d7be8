"""Quantized files as what conversions start from: float weights that know the codes they are made of.

Most conversions read them as floats. A folder for diffusers keeps the codes of the networks' int8 matrices,
as torchao's tensors; convolutions, int4 and fp8 codes have no counterpart there and are decoded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.checkpoint import Checkpoint
from checkpoints.diffusers.check import MODELS
from checkpoints.diffusers.folder import CONFIG as CONFIG_FILE
from checkpoints.files.lazy import LazyTensor, Values, lazy
from cldm.compressed.pruned import shrink_to_quantized
from ldm.config import create_meta_model
from quantize.files.read import load_quantized, read_content
from quantize.files.torchao import CODES, CONFIG, SCALE, WEIGHT, torchao_metadata
from quantize.layers import QuantLayer, QuantLinear
from tools.convert.files import SourceWeights, State

WITH_CODES = ("unet", "controlnet")  # parts whose loader takes torchao's tensors


class Coded(LazyTensor):
    """A float matrix [out, in] that is int8 codes of that shape times scales [out], and stays so."""

    def __init__(self, values: Tensor, scale: Tensor, decoded: LazyTensor) -> None:
        super().__init__(decoded.meta, decoded.read, decoded.sources, decoded.cost)
        self.values, self.scale = values, scale


def open_quantized(checkpoint: Checkpoint, config: Path | None = None) -> SourceWeights:
    """A quantized file as float tensors under the original names, to be decoded as they are read.

    config: the yaml of the model, None for the published one that the file fits. Raises ValueError in one
    sentence where none fits, and as `quantize.files.read.load_quantized`.
    """
    path = checkpoint.path
    model = create_meta_model(config or _fitting(path))
    shrink_to_quantized(model, checkpoint)
    plan = load_quantized(model, path, backend="reference").plan
    state: dict[str, LazyTensor] = {}
    for name, tensor in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if owner not in plan.layers or leaf == "bias":
            state[name] = lazy(tensor)
        elif leaf == "qweight":
            state[f"{owner}.weight"] = _weight(model.get_submodule(owner))
    return SourceWeights(path, state, {}, None, ())


def flattened(parts: Mapping[str, State]) -> dict[str, State]:
    """Parts under diffusers' names, codes and scales in place of each coded weight where they can be kept."""
    flat: dict[str, State] = {}
    for part, state in parts.items():
        tensors: dict[str, Values] = {}
        for name, tensor in state.items():
            if isinstance(tensor, Coded) and part in WITH_CODES:
                owner = name.removesuffix(WEIGHT)
                tensors |= {owner + CODES: tensor.values, owner + SCALE: tensor.scale[:, None]}
            else:
                tensors[name] = tensor
        flat[part] = tensors
    return flat


def metadata_of(state: State) -> dict[str, str]:
    """What the safetensors file of a flattened `state` says of its tensors; nothing where none has codes."""
    coded = {name.removesuffix(CODES) + WEIGHT: state[name].shape for name in state if name.endswith(CODES)}
    plain = [name for name in state if not name.endswith((CODES, SCALE))]
    return torchao_metadata(plain, coded) if coded else {}


def mark(folder: Path, state: State) -> None:
    """Have the settings of a part in `folder` say that its file holds codes, if it does."""
    if any(name.endswith(CODES) for name in state):
        path = folder / CONFIG_FILE
        settings = json.loads(path.read_text("utf-8")) | {"quantization_config": CONFIG}
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _weight(layer: QuantLayer) -> LazyTensor:
    spec, values, scale = layer.spec, layer.qweight, layer.scale
    meta = torch.empty(spec.shape, device="meta")

    def decode() -> Tensor:
        return spec.format.dequantize(values, scale, spec.shape)

    decoded = LazyTensor(meta, decode, frozenset(), values.nbytes + meta.nbytes)
    has_codes = isinstance(layer, QuantLinear) and spec.rule.weights == "int8"
    return Coded(values, scale, decoded) if has_codes else decoded


def _fitting(path: Path) -> Path:
    """The published yaml of the model that a quantized file was made for."""
    plan = read_content(path).plan
    for config in sorted(MODELS.glob("cldm_*.yaml")):
        try:
            plan.check(create_meta_model(config))
        except ValueError:
            continue
        return config
    raise ValueError(f"{path} fits no published model: name its yaml by --config")
