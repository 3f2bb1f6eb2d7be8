"""Who takes part in `bench.step` on the CPU: how each is prepared, loaded and made to compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.step.files import Files, Inputs
from bench.step.setting import Contender, Run, Setting

if TYPE_CHECKING:
    from torch import Tensor

    from cldm.cldm import ControlLDM

# glibc hands large blocks back to the kernel at once, which then clears every page of the next one.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def diffusers_step(setting: Setting) -> Run:
    """diffusers' U-Net and control branch, as they are."""
    from bench.step.diffusers import load_networks

    networks, inputs = load_networks(setting.files), random_inputs(setting)
    return lambda: (networks.step(inputs), {})


def diffusers_picture(setting: Setting) -> Run:
    """diffusers' pipeline."""
    from bench.step.picture import their_picture

    return their_picture(setting)


def openvino_step(setting: Setting) -> Run:
    """Both networks in int8, by OpenVINO."""
    from bench.step.openvino import Converted

    network = Converted(setting.files, setting.size, setting.batch, setting.threads)
    inputs = random_inputs(setting)
    return lambda: (network.step(inputs), {})


def _openvino_files(setting: Setting) -> list[Path]:
    from bench.step.openvino import INT8, PARTS, ir_path

    return [ir_path(setting.files, part, INT8, setting.size, setting.batch) for part in PARTS]


def _prepare_openvino(setting: Setting) -> None:
    from bench.step.openvino import convert

    setting.files.make_weights()
    convert(setting.files, setting.size, setting.batch)


def our_model(setting: Setting, files: Files, scheme: str | None) -> ControlLDM:
    """The float model, or the one of a quantized file, as `Pipeline.from_files` loads them."""
    import torch

    from cldm.compressed.load import load_quantized_model
    from cldm.model import load_model
    from ldm.util import pick_dtype

    options = {"device": setting.device, "dtype": pick_dtype("auto", torch.device(setting.device))}
    if scheme is None:
        return load_model(setting.config, files.weights, **options)
    return load_quantized_model(setting.config, files.quantized(scheme, setting.size), **options)


def ours(scheme: str | None = None, *, ruled: bool = False) -> Contender:
    """This project, with float weights or those of a scheme. ruled: by the setting's rules before its own."""

    def made(setting: Setting) -> Files:
        return replace(setting.files, rules=setting.rules) if ruled else setting.files

    def files(setting: Setting) -> list[Path]:
        return [made(setting).quantized(scheme, setting.size) if scheme else setting.files.weights]

    def prepare(setting: Setting) -> None:
        setting.files.make_weights()
        if scheme:
            made(setting).make_quantized(scheme, setting.size)

    def step(setting: Setting) -> Run:
        return denoising(our_model(setting, made(setting), scheme), setting)

    def picture(setting: Setting) -> Run:
        from bench.step.picture import our_picture

        return our_picture(our_model(setting, made(setting), scheme), setting)

    return Contender(step, picture, files, prepare, ruled=ruled)


def denoising(model: ControlLDM, setting: Setting) -> Run:
    """The branch and the U-Net as the pipeline runs them: the hint is encoded beforehand, once a picture."""
    from cldm.control_units import ControlUnit, combined_residuals, control_scales

    model.requires_grad_(False)
    branch, dtype = model.control_model, next(model.model.parameters()).dtype
    inputs = random_inputs(setting).to(setting.device, dtype)
    scales = control_scales(1.0, len(model.control_scales), guess_mode=False)
    units: list[ControlUnit] = []

    def run() -> tuple[Tensor, Mapping[str, float]]:
        if not units:  # belongs to the first step, not to loading
            units.append(ControlUnit(branch, branch.encode_hint(inputs.hint[:1]), scales))
        control = combined_residuals(units, inputs.x, inputs.t, inputs.text)
        cond = {"c_crossattn": [inputs.text], "c_concat": None, "control": control}
        return model.apply_model(inputs.x, inputs.t, cond), {}

    return run


def random_inputs(setting: Setting) -> Inputs:
    """What every contender's step is fed with, in float32 on the CPU."""
    from ldm.config import create_meta_model

    return Inputs.random(create_meta_model(setting.config), setting.size, setting.batch)


# The first of those that take part is what errors are relative to.
CPU = {
    "diffusers": Contender(diffusers_step, diffusers_picture, needs=("diffusers",)),
    "diffusers+allocator": Contender(
        diffusers_step, diffusers_picture, needs=("diffusers",), environment=KEEP_MEMORY
    ),
    "openvino-int8": Contender(
        openvino_step, None, _openvino_files, _prepare_openvino, needs=("diffusers", "openvino", "nncf")
    ),
    "ours-fp32": ours(),
    "ours-int8-dynamic": ours("int8_dynamic"),
    "ours-int8-static": ours("int8_static"),
    "ours-int8-dynamic-ruled": ours("int8_dynamic", ruled=True),
    "ours-int8-static-ruled": ours("int8_static", ruled=True),
}
