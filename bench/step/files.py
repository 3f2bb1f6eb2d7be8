"""The files that the contenders of `bench.step` load: one set of random weights, whole and quantized.

The weights are drawn by `bench.step.weights`. Files are made once and found again by their names. Nothing is
in memory as a whole but what calibration runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from bench.step.weights import WEIGHTS

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM
    from quantize.files.write import Schedule
    from quantize.selection import Plan
    from quantize.spec import Ranges

TOKENS = 77
LATENT_FACTOR = 8
TIMESTEP = 500
GROUPS = 4  # of timesteps with input ranges of their own, as `python -m quantize` has by default
CALIBRATION_SEED = 1000  # others than those of the measured inputs
# Schemes that differ in their inputs alone: looking for the same codes again would take minutes.
SAME_CODES = {"int8_static": "int8_dynamic", "int8_weight": "int8_dynamic", "fp8_dynamic": "fp8_weight"}
IN_SCALE, IN_ZERO = ".in_scale", ".in_zero"
RULES_DIGITS = 8  # of a hash, in file names
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
    """Weights of the model that the yaml `config` describes, in `folder`.

    kind: of `step_weights.WEIGHTS`. rules: "PATTERN=SCHEME", before those that come with a scheme.
    pictures: that static ranges are watched on, in each group of timesteps.
    """

    config: Path
    folder: Path
    kind: str = "gaussian"
    rules: tuple[str, ...] = ()
    pictures: int = 1

    @property
    def stem(self) -> str:
        """What the names of all files made of these weights begin with."""
        return self.config.stem if self.kind == "gaussian" else f"{self.config.stem}-{self.kind}"

    @property
    def weights(self) -> Path:
        """The float file, made by `make_weights`."""
        return self.folder / f"{self.stem}-random.safetensors"

    def quantized(self, scheme: str, size: int) -> Path:
        """The file of `scheme`; static ranges are those of pictures of `size` pixels."""
        parts = [self.stem, scheme]
        if scheme == "int8_static":
            parts += [str(size), *([f"{self.pictures}pictures"] if self.pictures != 1 else [])]
        if self.rules:
            parts.append(hashlib.sha256("\n".join(self.rules).encode()).hexdigest()[:RULES_DIGITS])
        return self.folder / f"{'-'.join(parts)}.safetensors"

    def make_weights(self) -> Path:
        """The float file, drawn tensor by tensor unless it is there."""
        from checkpoints.files.lazy import LazyTensor
        from checkpoints.files.write import write_weights
        from ldm.config import create_meta_model

        if self.weights.is_file():
            return self.weights
        model = create_meta_model(self.config)
        state = dict(model.state_dict())
        for name, tensor in model.named_parameters():
            meta, layer = (
                torch.empty(tensor.shape, device="meta"),
                model.get_submodule(name.rpartition(".")[0]),
            )
            state[name] = LazyTensor(meta, partial(WEIGHTS[self.kind], name, layer), frozenset(), 0)
        with _bar(self.weights, sum(tensor.nbytes for tensor in state.values())) as bar:
            return write_weights(self.weights, state, on_bytes=bar.update)

    def make_quantized(self, scheme: str, size: int, path: Path | None = None, **selection: bool) -> Path:
        """The file of `scheme`, unless it is there.

        path: another one than `quantized` gives. selection: switches of `default_selection`. Static ranges
        are those of random pictures of `size` pixels, watched in each group of timesteps. Where another
        file has the same codes, they are taken over from it, and it is made too. ValueError for a bad rule.
        """
        from ldm.config import create_meta_model
        from quantize.calibration.ranges import static_layers
        from quantize.files.write import Content, write_quantized
        from quantize.selection import default_selection, make_plan, parse_rules

        path = path or self.quantized(scheme, size)
        if path.is_file():
            return path
        model = create_meta_model(self.config)
        plan = make_plan(model, default_selection(scheme, **selection, extra=parse_rules(self.rules)))
        if not selection and (other := self._source(scheme, plan, model)):
            return self._with_codes_of(other, plan, path, size)
        ranges, schedule = self._ranges(plan, size) if static_layers(plan) else ({}, None)
        total = sum(tensor.nbytes for tensor in model.state_dict().values())
        with _bar(path, total // BYTES_A_WEIGHT) as bar:
            content = Content(plan, schedule)
            return write_quantized(path, model, self.tensors(), content, ranges, on_bytes=bar.update)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The float file's tensors, each mapped anew so that its pages go with it."""
        with safe_open(self.weights, framework="pt") as file:
            names = list(file.keys())
        for name in names:
            with safe_open(self.weights, framework="pt") as file:
                tensor = file.get_tensor(name)
            yield name, tensor
            del tensor

    def _source(self, scheme: str, plan: Plan, model: ControlLDM) -> tuple[Files, str] | None:
        """Whose file holds the codes of `plan`: the one without rules, or that of a scheme like it."""
        from quantize.selection import default_selection, make_plan

        other = scheme if self.rules else SAME_CODES.get(scheme)
        if other is None or _codes(make_plan(model, default_selection(other))) != _codes(plan):
            return None
        return replace(self, rules=()), other

    def _with_codes_of(self, source: tuple[Files, str], plan: Plan, path: Path, size: int) -> Path:
        """The file of `plan` with the codes, and as far as they go the ranges, of another one's file."""
        from checkpoints.files.write import write_weights
        from quantize.activations import qparams_of
        from quantize.calibration.ranges import static_layers
        from quantize.files.read import read_content
        from quantize.files.write import METADATA_KEY, Content

        files, scheme = source
        other, static = files.make_quantized(scheme, size), set(static_layers(plan))
        with safe_open(other, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  a file, not a dict
        ranged = {name.removesuffix(IN_SCALE) for name in state if name.endswith(IN_SCALE)}
        for name in ranged - static:
            del state[f"{name}{IN_SCALE}"], state[f"{name}{IN_ZERO}"]
        ranges, schedule = (
            ({}, read_content(other).schedule) if static <= ranged else self._ranges(plan, size)
        )
        for name, ends in ranges.items():
            qparams = [qparams_of(low, high) for low, high in ends]
            state[f"{name}{IN_SCALE}"] = torch.tensor([one.scale for one in qparams])
            state[f"{name}{IN_ZERO}"] = torch.tensor([one.zero for one in qparams], dtype=torch.int32)
        content = Content(plan, schedule if static else None)
        return write_weights(path, state, metadata={METADATA_KEY: content.to_json()})

    def _ranges(self, plan: Plan, size: int) -> tuple[dict[str, Ranges], Schedule]:
        from cldm.model import load_model
        from quantize.calibration.ranges import watch
        from quantize.files.write import Schedule
        from quantize.timesteps import TimestepGroups, argument, follow_timesteps

        model = load_model(self.config, self.weights).requires_grad_(False)
        groups = TimestepGroups.even(model.num_timesteps, GROUPS)
        for name, of in TIMED.items():
            network = model.get_submodule(name)
            follow_timesteps(network, groups, argument(network, of))
        calls = [
            (seed, t) for seed in range(self.pictures) for t in _middles(groups.edges, model.num_timesteps)
        ]
        with torch.inference_mode(), watch(model, plan, groups.count) as calibration:
            for seed, t in tqdm(calls, desc="calibration", disable=None):
                one = Inputs.random(model, size, 1, seed=CALIBRATION_SEED + seed, t=t)
                model.apply_model(one.x, one.t, {"c_concat": [one.hint], "c_crossattn": [one.text]})
        return calibration.all_ranges(plan), Schedule(groups, TIMED)


def _codes(plan: Plan) -> dict[str, str]:
    from quantize.schemes import get_scheme

    return {name: get_scheme(scheme).weights for name, scheme in plan.layers.items()}


def _middles(edges: tuple[float, ...], total: int) -> list[int]:
    """A timestep in the middle of each group."""
    ends = [0, *edges, total]
    return [int((low + high) / 2) for low, high in zip(ends, ends[1:], strict=False)]


def _bar(path: Path, total: int) -> tqdm:
    path.parent.mkdir(parents=True, exist_ok=True)
    return tqdm(total=total, desc=path.name, unit="B", unit_scale=True, disable=None, leave=False, delay=1)
