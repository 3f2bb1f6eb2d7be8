"""int8 matrices under the names that torchao's tensors have in safetensors files; torchao is not needed here.

torchao keeps a weight's codes [out, in] and scales [out, 1] as two tensors beside where the weight would be,
and says in the file's metadata what each tensor is. Codes and scales are taken over as they are: nothing is
rounded again. The inputs of such layers stay float, whatever the scheme: torchao would quantize them its own
way. The names and fields are those of torchao 0.15 and later, which the tests hold these against.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

WEIGHT = ".weight"  # of a layer; what torchao has in its place:
CODES, SCALE = "._weight_qdata", "._weight_scale"
NAMES = "tensor_names"  # entry of the metadata that lists all tensors
# What a model's config.json says for diffusers to look for such tensors.
CONFIG: Mapping[str, Any] = {
    "quant_method": "torchao",
    "modules_to_not_convert": None,
    "quant_type": {
        "default": {
            "_type": "Int8WeightOnlyConfig",
            "_version": 2,
            "_data": {
                "group_size": None,
                "granularity": {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}},
                "set_inductor_config": True,
            },
        }
    },
}
PLAIN = json.dumps({"_type": "Tensor"})


def torchao_metadata(plain: Sequence[str], coded: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """What a safetensors file must say of its tensors.

    plain: names of the float ones. coded: shapes [out, in] by the names that the weights would have.
    """
    entries = dict.fromkeys(plain, PLAIN) | {name: _entry(shape) for name, shape in coded.items()}
    return entries | {NAMES: json.dumps(list(entries))}


def _entry(shape: Sequence[int]) -> str:
    attributes = {
        "act_quant_kwargs": None,
        "reduce_range": False,
        "block_size": [1, shape[1]],  # a scale for each row
        "dtype": {"_type": "torch.dtype", "_data": "float32"},
    }
    return json.dumps({"_type": "Int8Tensor", "_data": attributes, "_tensor_data_names": ["qdata", "scale"]})
