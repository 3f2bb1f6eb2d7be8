"""Who takes part in `bench.step --device cuda`: diffusers in half precision and compiled, torchao."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bench.step.contenders import ours, random_inputs
from bench.step.setting import Contender, Run, Setting

if TYPE_CHECKING:
    from bench.step.diffusers import Networks

HALF = torch.float16
MODE = "max-autotune-no-cudagraphs"  # of torch.compile: the fastest kernels, and memory that can be compared


def _networks(setting: Setting, dtype: torch.dtype = HALF) -> Networks:
    from bench.step.diffusers import load_networks

    networks = load_networks(setting.files)
    for module in (networks.unet, networks.control):
        module.to(setting.device, dtype)
    return networks


def _run(networks: Networks, setting: Setting, dtype: torch.dtype = HALF) -> Run:
    inputs = random_inputs(setting).to(setting.device, dtype)
    return lambda: (networks.step(inputs), {})


def _float(setting: Setting) -> Run:
    return _run(_networks(setting, torch.float32), setting, torch.float32)


def _half(setting: Setting) -> Run:
    return _run(_networks(setting), setting)


def _compiled(setting: Setting) -> Run:
    return _run(_compile(_networks(setting)), setting)


def _torchao(setting: Setting) -> Run:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    networks = _networks(setting)
    for module in (networks.unet, networks.control):
        quantize_(module, Int8DynamicActivationInt8WeightConfig())
    return _run(_compile(networks), setting)  # uncompiled it is far slower than what it replaces


def _compile(networks: Networks) -> Networks:
    for module in (networks.unet, networks.control):
        module.to(memory_format=torch.channels_last)
        module.compile(mode=MODE, fullgraph=True)
    return networks


# The first is what errors are relative to.
CUDA = {
    "diffusers-fp32": Contender(_float, needs=("diffusers",)),
    "diffusers-fp16": Contender(_half, needs=("diffusers",)),
    "diffusers-fp16-compiled": Contender(_compiled, needs=("diffusers",)),
    "torchao-int8-compiled": Contender(_torchao, needs=("diffusers", "torchao")),
    "ours-fp16": ours(),
    "ours-int8-dynamic": ours("int8_dynamic"),
    "ours-int8-static": ours("int8_static"),
    "ours-int8-dynamic-ruled": ours("int8_dynamic", ruled=True),
    "ours-int8-static-ruled": ours("int8_static", ruled=True),
}
