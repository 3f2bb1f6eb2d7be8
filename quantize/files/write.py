"""Quantized models as safetensors files, written tensor by tensor from any source of float tensors.

The layout is known before the first number: from the model's shapes and the plan. A layer's `weight` is
replaced by its codes and scales; every other tensor stays as it is. The metadata entry `quantize` is a JSON
object with the format's version, the plan, the groups of timesteps and the sources' sha256.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from common.atomic import atomic_write, check_space
from common.hashing import sha256_of
from common.safetensors_header import Layout, Spans, safetensors_header
from quantize.arithmetic import check_finite
from quantize.schemes import LayerSpec, Ranges, quantize_tensors
from quantize.selection import Plan
from quantize.timesteps import TimestepGroups

FORMAT_VERSION = 2  # 1 had no narrow files
METADATA_KEY = "quantize"
SUFFIX = ".safetensors"  # readers go by it

OnBytes = Callable[[int], None]  # hears how many bytes more are written


@dataclass(frozen=True)
class Schedule:
    """What static ranges follow while a file's model is used."""

    groups: TimestepGroups
    modules: Mapping[str, str]  # name of each network that takes a timestep -> that argument's name


@dataclass(frozen=True)
class Content:
    """What a file says of itself."""

    plan: Plan
    schedule: Schedule | None = None  # of static ranges
    sources: Mapping[str, str] = field(default_factory=dict)  # sha256 of the files it was made of
    clip: str = "mse"  # how the steps of its weights were chosen (`quantize.arithmetic`)

    def to_json(self) -> str:
        """For the file's metadata; the same content gives the same text."""
        timed = self.schedule
        content = {
            "version": FORMAT_VERSION,
            "plan": json.loads(self.plan.to_json()),
            "schedule": timed and {"edges": timed.groups.edges, "modules": timed.modules},
            "sources": self.sources,
            "clip": self.clip,
        }
        return json.dumps(content, sort_keys=True, ensure_ascii=False, default=dict)

    @classmethod
    def from_json(cls, text: str, path: str | Path) -> Content:
        """What `to_json` wrote into the file `path`; ValueError in one sentence for anything else."""
        try:
            found = json.loads(text)
            version = found["version"]
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise ValueError(
                    f"{path} has format {version}, this program reads up to {FORMAT_VERSION}: update it"
                )
            schedule = found["schedule"] and Schedule(
                TimestepGroups(tuple(found["schedule"]["edges"])), dict(found["schedule"]["modules"])
            )
            plan = Plan.from_json(json.dumps(found["plan"]), f"the plan in {path}")
            return cls(plan, schedule, dict(found["sources"]), found.get("clip", cls.clip))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{path} says nonsense about its quantization, make it again: {reason}"
            ) from None


def write_quantized(
    path: str | Path,
    model: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    content: Content,
    ranges: Mapping[str, Ranges] | None = None,
    on_bytes: OnBytes | None = None,
) -> Path:
    """Write `tensors`, named as in the float `model`, quantized by the plan of `content`.

    model: gives names and shapes only and may have no memory. tensors: each is let go before the next is
    asked for, so that a source may read them as they come. ranges: of the static layers. Raises ValueError
    where names, shapes or numbers do not fit, OSError in one sentence when the disk is full or closed to us.
    """
    path, ranges = Path(path), ranges or {}
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: quantized models are {SUFFIX} files, name it {path.stem}{SUFFIX}")
    content.plan.check(model)
    specs = specs_of(model, content.plan, ranges)
    header, spans, size = _header(model, specs, content)
    check_space(path, size)  # before the work, not after it
    with atomic_write(path) as partial, partial.open("xb") as file:
        file.write(header)
        file.truncate(size)  # tensors are written where they belong, in any order
        parameters = _parameters(model)  # the rest are constants, some of which may be infinite
        for name, tensor in _quantized(tensors, specs, ranges, parameters, content.clip):
            _write(file, name, tensor, spans)
            if on_bytes:
                on_bytes(tensor.nbytes)
            del tensor  # else it would live until the next one is made
        if spans:
            raise ValueError(f"{len(spans)} tensors of the model were not given, such as {min(spans)}")
    return path


def file_size(model: nn.Module, content: Content, ranges: Mapping[str, Ranges] | None = None) -> int:
    """Bytes that `write_quantized` would write."""
    return _header(model, specs_of(model, content.plan, ranges or {}), content)[-1]


def hash_files(paths: Iterable[str | Path]) -> dict[str, str]:
    """sha256 of each file by its name without folders; folders count with the weights in them."""
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return {file.name: sha256_of(file) for file in files}


def specs_of(model: nn.Module, plan: Plan, ranges: Mapping[str, Ranges]) -> dict[str, LayerSpec]:
    """What the layers of a plan become, by name."""
    return {
        name: LayerSpec.of(model.get_submodule(name), scheme, len(ranges.get(name, [()])))
        for name, scheme in plan.layers.items()
    }


def layout_of(model: nn.Module, specs: Mapping[str, LayerSpec], *, narrow: bool) -> Layout:
    """The tensors of the file that holds `model` with layers of `specs`.

    In narrow files what stays float is half precision: 11 bits, exact for weights published so. Scales of
    int8 and fp8 are bfloat16, exact too: `quantize.arithmetic` rounds them before it picks the codes.
    """
    layout, parameters = {}, _parameters(model)
    for name, tensor in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if owner in specs and leaf == "weight":
            for part, (shape, dtype) in specs[owner].shapes().items():
                kept = torch.bfloat16 if narrow and part == "scale" else dtype
                layout[f"{owner}.{part}"] = (kept, list(shape))
        else:
            halved = narrow and name in parameters and tensor.dtype == torch.float32
            layout[name] = (torch.float16 if halved else tensor.dtype, list(tensor.shape))
    return layout


def _parameters(model: nn.Module) -> set[str]:
    """Names of all tensors that training changes, shared ones under each of their names."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


def _header(model: nn.Module, specs: Mapping[str, LayerSpec], content: Content) -> tuple[bytes, Spans, int]:
    metadata = {"format": "pt", METADATA_KEY: content.to_json()}
    return safetensors_header(layout_of(model, specs, narrow=content.plan.narrow), metadata)


def _quantized(
    tensors: Iterable[tuple[str, Tensor]],
    specs: Mapping[str, LayerSpec],
    ranges: Mapping[str, Ranges],
    parameters: set[str],
    clip: str,
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        owner, _, leaf = name.rpartition(".")
        if owner not in specs or leaf != "weight":
            if name in parameters:  # bytes of calibrated ranges would hide a NaN in a norm or bias
                check_finite(tensor, f"{owner}: a {leaf}")
            yield name, tensor
            del tensor
            continue
        try:
            made = quantize_tensors(specs[owner], tensor, ranges.get(owner), clip)
        except ValueError as error:
            raise ValueError(f"{owner}: {error}") from None
        del tensor
        for part, values in made.items():
            yield f"{owner}.{part}", values


def _write(file: BinaryIO, name: str, tensor: Tensor, spans: Spans) -> None:
    if name not in spans:
        raise ValueError(f"{name} is no tensor of the model, or was given twice")
    offset, dtype, shape = spans.pop(name)
    if list(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, the model {shape}")
    file.seek(offset)
    values = tensor.detach().to("cpu", dtype).contiguous().reshape(-1)
    if tensor.dtype != dtype and torch.isinf(values).any():
        most = torch.finfo(dtype).max
        raise ValueError(f"{name} goes beyond {most:.0f}, the most that two bytes hold: leave out --compact")
    file.write(values.view(torch.uint8).numpy().data)
