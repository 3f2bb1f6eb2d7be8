"""OpenVINO's int8: diffusers' networks converted, quantized by NNCF, compiled for the CPU.

Conversion and post-training quantization take minutes and over 10 GB at the size of Stable Diffusion 1.5, so
their result stays in the folder of the bench. Each network is a model of its own, as in Optimum's pipelines,
with fixed shapes, which is the fastest form that OpenVINO has.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.files import CALIBRATION_SEED
from bench.inputs import Inputs
from bench.step.diffusers import Networks, load_networks
from bench.step.setting import Setting
from ldm.config import create_meta_model

NETWORKS = ("control", "unet")  # in this order: the second is calibrated on what the first gives
CALIBRATION_TIMESTEPS = (250, 750)  # one random input of the measured size and batch for each
FLOAT, INT8 = "fp32", "int8"  # forms of a converted network, in file names


class Converted:
    """Both networks, compiled for the CPU with a number of threads."""

    def __init__(self, setting: Setting) -> None:
        import openvino as ov

        options = {
            "INFERENCE_NUM_THREADS": setting.threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1,
        }  # fmt: skip
        paths = [ir_path(setting, network, INT8) for network in NETWORKS]
        self._control, self._unet = (ov.Core().compile_model(path, "CPU", options) for path in paths)

    def step(self, inputs: Inputs) -> Tensor:
        """The predicted noise [b, 4, h, w]."""
        residuals = self._control(_arrays(inputs))
        return torch.from_numpy(self._unet([*_arrays(inputs)[:-1], *residuals.values()])[0])


class _Control(nn.Module):
    """Tensors in, tensors out, which is what can be traced."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.control, self._networks = networks.control, [networks]

    def forward(self, x: Tensor, t: Tensor, text: Tensor, hint: Tensor) -> tuple[Tensor, ...]:
        return self._networks[0].residuals(Inputs(x, t, text, hint))


class _Unet(nn.Module):
    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.unet, self._networks = networks.unet, [networks]

    def forward(self, x: Tensor, t: Tensor, text: Tensor, *residuals: Tensor) -> Tensor:
        return self._networks[0].unet_step(x, t, text, *residuals)


def ir_path(setting: Setting, network: str, kind: str) -> Path:
    """Where the model of `network` in the form `kind` is kept."""
    shape = f"{setting.size}x{setting.batch}"
    return setting.folder / f"openvino-{setting.files.stem}-{shape}" / f"{network}-{kind}.xml"


def convert(setting: Setting) -> None:
    """Make the int8 models, unless they are there; call it in a process of its own, for the memory."""
    model = create_meta_model(setting.config)
    inputs = [
        Inputs.random(model, setting.size, setting.batch, seed=CALIBRATION_SEED + index, t=t)
        for index, t in enumerate(CALIBRATION_TIMESTEPS)
    ]
    for network in NETWORKS:
        target = ir_path(setting, network, INT8)
        if not target.is_file():
            examples = list(_examples(setting, network, inputs))
            _quantize(_float_ir(setting, network, examples[0]), target, examples)


def _arrays(inputs: Inputs) -> list[np.ndarray]:
    return [one.numpy() for one in (inputs.x, inputs.t, inputs.text, inputs.hint)]


def _examples(setting: Setting, network: str, inputs: list[Inputs]) -> Iterator[list[np.ndarray]]:
    """The arguments of `network` for each input; the U-Net's need the branch's residuals."""
    import openvino as ov

    for one in map(_arrays, inputs):
        if network == "control":
            yield one
        else:
            control = ov.Core().compile_model(ir_path(setting, "control", FLOAT), "CPU")
            yield [*one[:-1], *(value.copy() for value in control(one).values())]


def _float_ir(setting: Setting, network: str, example: list[np.ndarray]) -> Path:
    import openvino as ov

    path = ir_path(setting, network, FLOAT)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        module = {"control": _Control, "unet": _Unet}[network](load_networks(setting.files))
        traced = tuple(map(torch.from_numpy, example))
        with torch.no_grad():
            shapes = [value.shape for value in example]
            model = ov.convert_model(module, example_input=traced, input=shapes)
        ov.save_model(model, path, compress_to_fp16=False)
    return path


def _quantize(source: Path, target: Path, examples: list[list[np.ndarray]]) -> None:
    import nncf
    import openvino as ov

    quantized = nncf.quantize(
        ov.Core().read_model(source), nncf.Dataset(examples), subset_size=len(examples),
        model_type=nncf.ModelType.TRANSFORMER, target_device=nncf.TargetDevice.CPU,
    )  # fmt: skip
    draft = target.with_name(f"draft-{target.name}")
    ov.save_model(quantized, draft)  # two files, so that atomic_write does not fit
    draft.with_suffix(".bin").replace(target.with_suffix(".bin"))
    draft.replace(target)
