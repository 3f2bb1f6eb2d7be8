"""The files that contenders load: one set of random weights, whole and quantized.

The weights are drawn by `bench.random_weights`. Files are made once and found again by their names. Nothing
is in memory as a whole but what calibration runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from bench.inputs import Inputs
from bench.random_weights import WEIGHTS

if TYPE_CHECKING:
    from quantize.files.write import Schedule
    from quantize.schemes import Ranges
    from quantize.selection import Plan

GROUPS = 4  # of timesteps with input ranges of their own, as `python -m quantize` has by default
CALIBRATION_SEED = 1000  # others than those of the measured inputs
RULES_DIGITS = 8  # of a hash, in file names
BYTES_A_WEIGHT = 4  # of float32 for each byte of int8
TIMED = {"control_model": "timesteps", "model.diffusion_model": "timesteps"}


@dataclass(frozen=True)
class Files:
    """Weights of the model that the yaml `config` describes, in `folder`.

    kind: of `random_weights.WEIGHTS`. rules: "PATTERN=SCHEME", before those that come with a scheme.
    """

    config: Path
    folder: Path
    kind: str = "gaussian"  # the harder of the two
    rules: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """What the names of all files made of these weights begin with."""
        return self.config.stem if self.kind == "gaussian" else f"{self.config.stem}-{self.kind}"

    @property
    def weights(self) -> Path:
        """The float file, made by `make_weights`."""
        return self.folder / f"{self.stem}-random.safetensors"

    def quantized(self, scheme: str, size: int) -> Path:
        """The file of `scheme`; static ranges are those of a picture of `size` pixels."""
        parts = [self.stem, scheme, *([str(size)] if scheme == "int8_static" else [])]
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
            layer, draw = model.get_submodule(name.rpartition(".")[0]), WEIGHTS[self.kind]
            shape = torch.empty(tensor.shape, device="meta")
            state[name] = LazyTensor(shape, partial(draw, name, layer), frozenset(), 0)
        with _bar(self.weights, sum(tensor.nbytes for tensor in state.values())) as bar:
            return write_weights(self.weights, state, on_bytes=bar.update)

    def make_quantized(self, scheme: str, size: int, path: Path | None = None, **selection: bool) -> Path:
        """The file of `scheme`, unless it is there.

        path: another one than `quantized` gives. selection: switches of `default_selection`. Static ranges
        are those of a random picture of `size` pixels, watched in each group of timesteps. ValueError for a
        bad rule.
        """
        from ldm.config import create_meta_model
        from quantize.calibration.ranges import static_layers
        from quantize.files.write import Content, write_quantized
        from quantize.selection import default_selection, make_plan, parse_rules

        path = path or self.quantized(scheme, size)
        if path.is_file():
            return path
        self.make_weights()
        model = create_meta_model(self.config)
        plan = make_plan(model, default_selection(scheme, **selection, extra=parse_rules(self.rules)))
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

    def _ranges(self, plan: Plan, size: int) -> tuple[dict[str, Ranges], Schedule]:
        from cldm.model import load_model
        from quantize.calibration.ranges import watch
        from quantize.files.write import Schedule
        from quantize.timesteps import TimestepGroups, follow_timesteps

        model = load_model(self.config, self.weights).requires_grad_(False)
        groups = TimestepGroups.even(model.num_timesteps, GROUPS)
        for name, of in TIMED.items():
            network = model.get_submodule(name)
            follow_timesteps(network, groups, of)
        ends = [0, *groups.edges, model.num_timesteps]
        middles = [int((low + high) / 2) for low, high in zip(ends, ends[1:], strict=False)]
        with torch.inference_mode(), watch(model, plan, groups.count) as calibration:
            for t in tqdm(middles, desc="calibration", disable=None):
                one = Inputs.random(model, size, 1, seed=CALIBRATION_SEED, t=t)
                model.apply_model(one.x, one.t, {"c_concat": [one.hint], "c_crossattn": [one.text]})
        return calibration.all_ranges(plan), Schedule(groups, TIMED)


def converted(source: Path, target: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A float file's numbers in `dtype`, in the form that the suffix of `target` says; never held."""
    from checkpoints.checkpoint import open_checkpoint
    from checkpoints.files.write import write_weights

    state = open_checkpoint(source).tensors()
    return write_weights(
        target, {n: t.to(dtype) if t.dtype.is_floating_point else t for n, t in state.items()}
    )


def _bar(path: Path, total: int) -> tqdm:
    return tqdm(total=total, desc=path.name, unit="B", unit_scale=True, disable=None, leave=False, delay=1)
