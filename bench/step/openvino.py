"""OpenVINO's int8: diffusers' networks converted, quantized by NNCF, compiled for the CPU.

Conversion and post-training quantization take minutes and over 10 GB at the size of Stable Diffusion 1.5, so
their result stays in the folder of the bench. Each network is a model of its own, as in Optimum's pipelines,
with fixed shapes, which is the fastest form that OpenVINO has.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.step.diffusers import load_networks
from bench.step.files import CALIBRATION_SEED, Inputs

if TYPE_CHECKING:
    from bench.step.files import Files

PARTS = ("control", "unet")
CALIBRATION_TIMESTEPS = (250, 750)  # one random input of the measured size and batch for each
FLOAT, INT8 = "fp32", "int8"


class Converted:
    """Both networks, compiled for the CPU with a number of threads."""

    def __init__(self, files: Files, size: int, batch: int, threads: int) -> None:
        import openvino as ov

        core = ov.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        paths = [ir_path(files, part, INT8, size, batch) for part in PARTS]
        self._control, self._unet = (core.compile_model(path, "CPU", settings) for path in paths)

    def step(self, inputs: Inputs) -> Tensor:
        """The predicted noise [b, 4, h, w]."""
        shared = [inputs.x.numpy(), inputs.t.numpy(), inputs.text.numpy()]
        residuals = self._control([*shared, inputs.hint.numpy()])
        return torch.from_numpy(self._unet([*shared, *residuals.values()])[0])


class _Control(nn.Module):
    """Tensors in, tensors out, which is what can be traced."""

    def __init__(self, networks: Any) -> None:
        super().__init__()
        self.control, self._networks = networks.control, [networks]

    def forward(self, x: Tensor, t: Tensor, text: Tensor, hint: Tensor) -> tuple[Tensor, ...]:
        return self._networks[0].residuals(Inputs(x, t, text, hint))


class _Unet(nn.Module):
    def __init__(self, networks: Any) -> None:
        super().__init__()
        self.unet, self._networks = networks.unet, [networks]

    def forward(self, x: Tensor, t: Tensor, text: Tensor, *residuals: Tensor) -> Tensor:
        return self._networks[0].unet_step(x, t, text, *residuals)


def ir_path(files: Files, part: str, kind: str, size: int, batch: int) -> Path:
    """Where the model of `part` in the form `kind` is kept."""
    return files.folder / f"openvino-{files.stem}-{size}x{batch}" / f"{part}-{kind}.xml"


def convert(files: Files, size: int, batch: int) -> None:
    """Make the int8 models, unless they are there; call it in a process of its own, for the memory."""
    inputs = [_calibration(files, size, batch, index) for index in range(len(CALIBRATION_TIMESTEPS))]
    for part in PARTS:
        target = ir_path(files, part, INT8, size, batch)
        if not target.is_file():
            rows = list(_rows(files, part, inputs, size, batch))
            _quantize(_float_ir(files, part, rows[0], size, batch), target, rows)


def _calibration(files: Files, size: int, batch: int, index: int) -> Inputs:
    from ldm.config import create_meta_model

    model = create_meta_model(files.config)
    seed, t = CALIBRATION_SEED + index, CALIBRATION_TIMESTEPS[index]
    return Inputs.random(model, size, batch, seed=seed, t=t)


def _rows(files: Files, part: str, inputs: list[Inputs], size: int, batch: int) -> Iterator[list[Any]]:
    """The arguments of `part` for each input, as arrays; the U-Net's need the branch's answers."""
    import openvino as ov

    for one in inputs:
        shared = [one.x.numpy(), one.t.numpy(), one.text.numpy()]
        if part == "control":
            yield [*shared, one.hint.numpy()]
        else:
            float_ir = ir_path(files, "control", FLOAT, size, batch)
            answers = ov.Core().compile_model(float_ir, "CPU")([*shared, one.hint.numpy()])
            yield [*shared, *(value.copy() for value in answers.values())]


def _float_ir(files: Files, part: str, row: list[Any], size: int, batch: int) -> Path:
    import openvino as ov

    path = ir_path(files, part, FLOAT, size, batch)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        module = {"control": _Control, "unet": _Unet}[part](load_networks(files))
        example = tuple(torch.from_numpy(value) for value in row)
        with torch.no_grad():
            model = ov.convert_model(module, example_input=example, input=[value.shape for value in row])
        ov.save_model(model, path, compress_to_fp16=False)
    return path


def _quantize(source: Path, target: Path, rows: list[Any]) -> None:
    import nncf
    import openvino as ov

    model = ov.Core().read_model(source)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(rows),
        subset_size=len(rows),
        model_type=nncf.ModelType.TRANSFORMER,
        target_device=nncf.TargetDevice.CPU,
    )
    draft = target.with_name(f"draft-{target.name}")
    ov.save_model(quantized, draft)
    draft.with_suffix(".bin").replace(target.with_suffix(".bin"))
    draft.replace(target)
