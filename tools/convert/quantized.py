"""Quantized files as what conversions start from: float weights that know the codes they are made of.

Most conversions read them as floats. A folder for diffusers keeps the codes of the networks' int8 matrices,
as torchao's tensors; convolutions, int4 and fp8 codes have no counterpart there and are decoded.

torchao keeps a weight's codes [out, in] and scales [out, 1] as two tensors beside where the weight would be,
and says in the file's metadata what each tensor is. Nothing is rounded again. The inputs of such layers stay
float, whatever the scheme: torchao would quantize them its own way. The names and fields are those of torchao
0.15 and later, which the tests hold these against; it is not needed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.checkpoint import Checkpoint
from checkpoints.diffusers.check import MODELS
from checkpoints.diffusers.folder import CONFIG
from checkpoints.files.lazy import LazyTensor, Values, lazy
from cldm.compressed.pruned import shrink_to_quantized
from ldm.config import create_meta_model
from quantize.files.read import load_quantized, read_content
from quantize.layers import QuantLayer, QuantLinear
from tools.convert.files import SourceWeights, State

WEIGHT = ".weight"  # of a layer; what torchao has in its place:
CODES, SCALE = "._weight_qdata", "._weight_scale"
NAMES = "tensor_names"  # entry of the metadata that lists all tensors
# What a model's config.json says for diffusers to look for such tensors.
TORCHAO_CONFIG = json.loads(Path(__file__).with_name("torchao.json").read_text("utf-8"))
PLAIN = json.dumps({"_type": "Tensor"})
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
    shrink_to_quantized(model, checkpoint)  # of a pruned model's file
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
    coded = {name.removesuffix(CODES) + WEIGHT: _entry(state[name]) for name in state if name.endswith(CODES)}
    entries = dict.fromkeys((name for name in state if not name.endswith((CODES, SCALE))), PLAIN) | coded
    return entries | {NAMES: json.dumps(list(entries))} if coded else {}


def mark(folder: Path, state: State) -> None:
    """Have the settings of a part in `folder` say that its file holds codes, if it does."""
    if any(name.endswith(CODES) for name in state):
        path = folder / CONFIG
        settings = json.loads(path.read_text("utf-8")) | {"quantization_config": TORCHAO_CONFIG}
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _entry(codes: Values) -> str:
    attributes = {
        "act_quant_kwargs": None,
        "reduce_range": False,
        "block_size": [1, codes.shape[1]],  # a scale for each row
        "dtype": {"_type": "torch.dtype", "_data": "float32"},
    }
    return json.dumps({"_type": "Int8Tensor", "_data": attributes, "_tensor_data_names": ["qdata", "scale"]})


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
            plan.check(create_meta_model(config))  # names and shapes alone tell the families apart
        except ValueError:
            continue
        return config
    raise ValueError(f"{path} fits no published model: name its yaml by --config")
