"""The files that the contenders of `bench.step` load: one set of random weights, whole and quantized.

Every weight matrix keeps the variance of its input about, so that activations stay in range through the whole
network; norms are near 1, biases small, and the zero convolutions of the branch are anything but zero. Files
are made once and found again by their names. Nothing is in memory as a whole but what calibration runs.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM
    from quantize.selection import Plan
    from quantize.spec import Ranges
    from quantize.storage import Schedule

SPREAD = 0.2  # of norms around 1 and of biases around 0: enough that none of them could be left out
TOKENS = 77
LATENT_FACTOR = 8
TIMESTEP = 500
GROUPS = 4  # of timesteps with input ranges of their own, as `python -m quantize` has by default
PICTURES = 1  # watched for each group, the ranges of random inputs being much alike
CALIBRATION_SEED = 1000  # others than those of the measured inputs
# Schemes that differ in their inputs alone: looking for the same codes again would take minutes.
SAME_CODES = {"int8_static": "int8_dynamic", "int8_weight": "int8_dynamic", "fp8_dynamic": "fp8_weight"}
BYTES_A_WEIGHT = 4  # of float32 for each byte of int8
TIMED = {"control_model": "timesteps", "model.diffusion_model": "timesteps"}


@dataclass(frozen=True)
class Inputs:
    """What a step is fed with: latents [b, 4, h, w], timesteps [b], text [b, 77, d], hint [b, 3, H, W]."""

    x: Tensor
    t: Tensor
    text: Tensor
    hint: Tensor

    @classmethod
    def random(cls, model: ControlLDM, size: int, batch: int, *, seed: int = 0, t: int = TIMESTEP) -> Inputs:
        """Drawn from `seed`. The hint is the same for the whole batch, as guidance has it."""
        config, noise = model.model.diffusion_model.config, torch.Generator().manual_seed(seed)
        side = size // LATENT_FACTOR
        return cls(
            torch.randn(1, config.in_channels, side, side, generator=noise).repeat(batch, 1, 1, 1),
            torch.full((batch,), t),
            torch.randn(batch, TOKENS, config.context_dim, generator=noise),
            torch.rand(1, 3, size, size, generator=noise).repeat(batch, 1, 1, 1),
        )

    def to(self, device: str, dtype: torch.dtype) -> Inputs:
        """The same on `device`, in `dtype`; timesteps stay whole numbers."""
        x, text, hint = (value.to(device, dtype) for value in (self.x, self.text, self.hint))
        return Inputs(x, self.t.to(device), text, hint)


@dataclass(frozen=True)
class Files:
    """Weights of the model that the yaml `config` describes, in `folder`."""

    config: Path
    folder: Path

    @property
    def weights(self) -> Path:
        """The float file, made by `make_weights`."""
        return self.folder / f"{self.config.stem}-random.safetensors"

    def quantized(self, scheme: str, size: int) -> Path:
        """The file of `scheme`; static ranges are those of pictures of `size` pixels."""
        seen = f"-{size}" if scheme == "int8_static" else ""
        return self.folder / f"{self.config.stem}-{scheme}{seen}.safetensors"

    def make_weights(self) -> Path:
        """The float file, drawn tensor by tensor unless it is there."""
        from cldm.model import create_meta_model
        from ldm.lazy import LazyTensor
        from ldm.stream import write_weights

        if self.weights.is_file():
            return self.weights
        model = create_meta_model(self.config)
        state = dict(model.state_dict())
        for name, tensor in model.named_parameters():
            meta = torch.empty(tensor.shape, device="meta")
            state[name] = LazyTensor(meta, lambda n=name, s=tensor.shape: draw(n, s), frozenset(), 0)
        with _bar(self.weights, sum(tensor.nbytes for tensor in state.values())) as bar:
            return write_weights(self.weights, state, on_bytes=bar.update)

    def make_quantized(self, scheme: str, size: int, path: Path | None = None, **selection: bool) -> Path:
        """The file of `scheme`, unless it is there.

        path: another one than `quantized` gives. selection: switches of `default_selection`. Static ranges
        are those of random pictures of `size` pixels, watched in each group of timesteps. Where another
        scheme has the same codes, they are taken over from its file, which is made too.
        """
        from cldm.model import create_meta_model
        from quantize.selection import default_selection, make_plan
        from quantize.storage import Content, write_quantized

        path = path or self.quantized(scheme, size)
        if path.is_file():
            return path
        model = create_meta_model(self.config)
        plan = make_plan(model, default_selection(scheme, **selection))
        if scheme in SAME_CODES and not selection:
            return self._with_codes_of(SAME_CODES[scheme], plan, path, size)
        total = sum(tensor.nbytes for tensor in model.state_dict().values())
        with _bar(path, total // BYTES_A_WEIGHT) as bar:
            return write_quantized(path, model, self.tensors(), Content(plan), on_bytes=bar.update)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The float file's tensors, each mapped anew so that its pages go with it."""
        with safe_open(self.weights, framework="pt") as file:
            names = list(file.keys())
        for name in names:
            with safe_open(self.weights, framework="pt") as file:
                tensor = file.get_tensor(name)
            yield name, tensor
            del tensor

    def _with_codes_of(self, scheme: str, plan: Plan, path: Path, size: int) -> Path:
        """The file of `scheme` with another plan, and the ranges of that plan's static inputs."""
        from ldm.stream import write_weights
        from quantize.arithmetic import affine_of
        from quantize.calibrate import static_layers
        from quantize.loading import read_content
        from quantize.storage import METADATA_KEY, Content

        other = self.make_quantized(scheme, size)
        assert read_content(other).plan.layers.keys() == plan.layers.keys()
        ranges, schedule = self._ranges(plan, size) if static_layers(plan) else ({}, None)
        with safe_open(other, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  a file, not a dict
        for name, ends in ranges.items():
            affines = [affine_of(low, high) for low, high in ends]
            state[f"{name}.in_scale"] = torch.tensor([one.scale for one in affines])
            state[f"{name}.in_zero"] = torch.tensor([one.zero for one in affines], dtype=torch.int32)
        return write_weights(path, state, metadata={METADATA_KEY: Content(plan, schedule).to_json()})

    def _ranges(self, plan: Plan, size: int) -> tuple[dict[str, Ranges], Schedule]:
        from cldm.model import load_model
        from quantize.calibrate import watch
        from quantize.storage import Schedule
        from quantize.timesteps import TimestepGroups, argument, follow_timesteps

        model = load_model(self.config, self.weights).requires_grad_(False)
        groups = TimestepGroups.even(model.num_timesteps, GROUPS)
        for name, of in TIMED.items():
            network = model.get_submodule(name)
            follow_timesteps(network, groups, argument(network, of))
        calls = [(seed, t) for seed in range(PICTURES) for t in _middles(groups.edges, model.num_timesteps)]
        with torch.inference_mode(), watch(model, plan, groups.count) as calibration:
            for seed, t in tqdm(calls, desc="calibration", disable=None):
                one = Inputs.random(model, size, 1, seed=CALIBRATION_SEED + seed, t=t)
                model.apply_model(one.x, one.t, {"c_concat": [one.hint], "c_crossattn": [one.text]})
        return calibration.all_ranges(plan), Schedule(groups, TIMED)


def draw(name: str, shape: torch.Size) -> Tensor:
    """The random float32 weight called `name`; the same name and shape give the same numbers."""
    noise = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    drawn = torch.randn(shape, generator=noise)
    if len(shape) > 1:
        return drawn.div_(math.sqrt(math.prod(shape[1:])))
    return drawn.mul_(SPREAD).add_(1.0 if name.endswith("weight") else 0.0)


def _middles(edges: tuple[float, ...], total: int) -> list[int]:
    """A timestep in the middle of each group."""
    ends = [0, *edges, total]
    return [int((low + high) / 2) for low, high in zip(ends, ends[1:], strict=False)]


def _bar(path: Path, total: int) -> tqdm:
    path.parent.mkdir(parents=True, exist_ok=True)
    return tqdm(total=total, desc=path.name, unit="B", unit_scale=True, disable=None, leave=False, delay=1)
