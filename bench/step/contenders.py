"""Who takes part in `bench.step`: how each is prepared, loaded and made to compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.inputs import Inputs, denoising_step
from bench.processes import Run
from bench.step.setting import Compute, Contender, Setting

if TYPE_CHECKING:
    from bench.step.diffusers import Networks
    from cldm.cldm import ControlLDM

# glibc hands large blocks back to the kernel at once, which then clears every page of the next one.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
MODE = "max-autotune-no-cudagraphs"  # of torch.compile: the fastest kernels, and memory that can be compared


def random_inputs(setting: Setting) -> Inputs:
    """What every contender's step is fed with, in float32 on the CPU."""
    from ldm.config import create_meta_model

    return Inputs.random(create_meta_model(setting.config), setting.size, setting.batch)


def diffusers(dtype: torch.dtype = torch.float32, *, int8: bool = False, compiled: bool = False) -> Contender:
    """diffusers' U-Net and control branch. int8: by torchao. compiled: by torch, channels last."""

    def step(setting: Setting) -> Compute:
        from bench.step.diffusers import load_networks

        networks = load_networks(setting.files)
        for module in (networks.unet, networks.control):
            module.to(setting.device, dtype)
        if int8:
            _quantize_by_torchao(networks)
        if compiled:
            for module in (networks.unet, networks.control):
                module.to(memory_format=torch.channels_last)  # what compiled convolutions are fastest in
                module.compile(mode=MODE, fullgraph=True)
        inputs = random_inputs(setting).to(setting.device, dtype)
        return lambda: networks.step(inputs)

    return Contender(step, needs=("diffusers", *(["torchao"] if int8 else [])))


def _quantize_by_torchao(networks: Networks) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    for module in (networks.unet, networks.control):
        quantize_(module, Int8DynamicActivationInt8WeightConfig())


def openvino_step(setting: Setting) -> Compute:
    """Both networks in int8, by OpenVINO."""
    from bench.step.openvino import Converted

    network = Converted(setting)
    inputs = random_inputs(setting)
    return lambda: network.step(inputs)


def _openvino_files(setting: Setting) -> list[Path]:
    from bench.step.openvino import INT8, NETWORKS, ir_path

    return [ir_path(setting, network, INT8) for network in NETWORKS]


def _prepare_openvino(setting: Setting) -> None:
    from bench.step.openvino import convert

    setting.files.make_weights()
    convert(setting)


def our_model(setting: Setting, scheme: str | None) -> ControlLDM:
    """The float model, or the one of a quantized file, as `Pipeline.from_files` loads them."""
    from cldm.compressed.quantized import load_quantized_model
    from cldm.model import load_model
    from ldm.util import pick_dtype

    options = {"device": setting.device, "dtype": pick_dtype("auto", torch.device(setting.device))}
    if scheme is None:
        return load_model(setting.config, setting.files.weights, **options)
    return load_quantized_model(setting.config, setting.files.quantized(scheme, setting.size), **options)


def ours(scheme: str | None = None) -> Contender:
    """This project, with float weights or those of a scheme."""

    def files(setting: Setting) -> list[Path]:
        return [setting.files.quantized(scheme, setting.size) if scheme else setting.files.weights]

    def prepare(setting: Setting) -> None:
        setting.files.make_weights()
        if scheme:
            setting.files.make_quantized(scheme, setting.size)

    def step(setting: Setting) -> Compute:
        model = our_model(setting, scheme).requires_grad_(False)
        dtype = next(model.model.parameters()).dtype
        return denoising_step(model, random_inputs(setting).to(setting.device, dtype))

    return Contender(step, files, prepare)


def contenders_on(device: str) -> Mapping[str, Contender]:
    """Who takes part on `device`, by name; ValueError for one that is neither cpu nor cuda."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r}: use cpu or cuda")
    return GPU if device == "cuda" else CPU


def prepare_files(name: str, setting: Setting) -> None:
    """Make what a contender loads; for a process of its own."""
    contenders_on(setting.device)[name].prepare(setting)


def load(name: str, setting: Setting, output: Path) -> Run:
    """What a contender's process runs; what it computes first is written to `output`."""
    compute = contenders_on(setting.device)[name].load(setting)

    @torch.inference_mode()
    def run() -> None:
        result = compute()
        if not output.is_file():
            torch.save(result.float().cpu(), output)  # outside of what is timed: the first run

    return run


OURS_INT8 = {"ours-int8-dynamic": ours("int8_dynamic"), "ours-int8-static": ours("int8_static")}
# The first of those that take part is what errors are relative to.
CPU = {
    "diffusers": diffusers(),
    "diffusers+allocator": replace(diffusers(), environment=KEEP_MEMORY),
    "openvino-int8": Contender(
        openvino_step, _openvino_files, _prepare_openvino, needs=("diffusers", "openvino", "nncf")
    ),
    "ours-fp32": ours(),
    **OURS_INT8,
}
GPU = {
    "diffusers-fp32": diffusers(),
    "diffusers-fp16": diffusers(torch.float16),
    "diffusers-fp16-compiled": diffusers(torch.float16, compiled=True),
    # Uncompiled it is far slower than what it replaces.
    "torchao-int8-compiled": diffusers(torch.float16, int8=True, compiled=True),
    "ours-fp16": ours(),
    **OURS_INT8,
}
EQUAL = 1e-4  # relative difference between two float programs that compute the same: rounding of sums
SAME = ("diffusers", "diffusers+allocator", "ours-fp32")  # what computes the same
