"""LoRA files merged into a model: W + weight * alpha / rank * up @ down (Hu et al. 2021, section 4.1).

Everything is read, named, measured and computed before the first parameter changes: a file that does not fit
leaves the model as it was. Sums are in float32, then in the parameter's own dtype, once for all files.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from checkpoints.checkpoint import open_checkpoint
from checkpoints.files.lazy import read
from checkpoints.lora.names import TEXT_READERS, Alphas, LoraTarget, lora_targets, split_name, stored_alphas
from checkpoints.names.diffusers import COMPONENTS
from checkpoints.names.original import PART_LABELS, family
from checkpoints.names.recognize import is_lora, refuse_foreign
from common.shell import quote

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoraLayer:
    """The difference that a file has for one weight: down [r, i, ...], up [o, r, ...], mid [r, r, k, k]."""

    target: LoraTarget
    down: Tensor
    up: Tensor
    mid: Tensor | None  # of LoCon files alone
    scale: float  # alpha over rank; the weight of the request comes on top

    def difference(self) -> Tensor:
        """scale * up @ down in float32, in the shape of its target."""
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)  # [o, r] and [r, i * k * k]
        if self.mid is None:
            product = up @ down
        else:  # two 1x1 convolutions around a small one
            product = torch.einsum("or,rskl,si->oikl", up, self.mid.float(), down)
        return self.scale * product.reshape(self.target.shape)


@dataclass(frozen=True)
class LoraReport:
    """What was merged: layers by part of the model, and the ranks that occur."""

    path: str
    weight: float
    layers: Mapping[str, int]
    ranks: tuple[int, ...]

    def __str__(self) -> str:
        named = {PART_LABELS[COMPONENTS[part].prefix]: count for part, count in self.layers.items()}
        counts = ", ".join(f"{count} of the {label}" for label, count in named.items())
        ranks = ", ".join(map(str, self.ranks))
        return f"{self.path} x {self.weight:g} changes weights: {counts}; rank {ranks}"


def merge_loras(model: nn.Module, loras: Sequence[tuple[str | Path, float]]) -> list[LoraReport]:
    """Merge files, each with its weight, into the parameters of a whole model; weight 0 changes nothing.

    Raises FileNotFoundError, or ValueError in one sentence, with `model` as it was, for a file that is no
    LoRA, is of another kind, names what the model does not have or does not fit its shapes.
    """
    parameters = dict(model.named_parameters())
    table = lora_targets({name: tuple(parameter.shape) for name, parameter in parameters.items()})
    files = [(str(path), weight, _read_lora(Path(path), weight, table)) for path, weight in loras]
    changes: dict[str, list[tuple[float, LoraLayer]]] = {}
    for _, weight, layers in files:
        for layer in layers if weight else ():
            changes.setdefault(layer.target.key, []).append((weight, layer))
    labels = " + ".join(path for path, *_ in files)
    merged = {key: _merged(parameters[key], layers, labels) for key, layers in changes.items()}
    for key, tensor in merged.items():
        parameters[key].data = tensor  # only now: every file has been read and fits
    reports = []
    for path, weight, layers in files:
        counts = Counter(layer.target.part for layer in layers)
        ranks = sorted({len(layer.down) for layer in layers})
        reports.append(LoraReport(path, weight, counts, tuple(ranks)))
        log.info("%s", reports[-1])
    return reports


@torch.no_grad()
def _merged(parameter: Tensor, layers: Sequence[tuple[float, LoraLayer]], labels: str) -> Tensor:
    total = parameter.float().clone()  # half precision would round each file's part away
    for weight, layer in layers:
        rows = total[layer.target.first : layer.target.first + layer.target.shape[0]]
        rows += (weight * layer.difference()).to(total.device)
    merged = total.to(parameter.dtype)
    if not merged.isfinite().all():  # as half precision may overflow at large weights
        key = layers[0][1].target.key
        raise ValueError(f"{labels}: {key} would not be finite: lower the weight, or get the file again")
    return merged


def _read_lora(path: Path, weight: float, table: Mapping[str, LoraTarget]) -> list[LoraLayer]:
    if not math.isfinite(weight):
        raise ValueError(f"{path}: weight {weight}: use a number, 1 is as trained")
    checkpoint = open_checkpoint(path)
    tensors = {name: read(tensor) for name, tensor in checkpoint.tensors().items()}
    refuse_foreign(path, tensors)
    if not is_lora(tensors):
        raise ValueError(f"{path} is no LoRA, it has {quote(list(tensors))}: give models by --weights")
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, role = split_name(name) or (name, "")
        groups.setdefault(module, {})[role] = tensor
    _check_family(path, groups, table)
    unknown = [name for name in tensors if (split_name(name) or (None,))[0] not in table]
    if unknown:
        raise ValueError(
            f"{path} has {len(unknown)} of {len(tensors)} names unknown to the model "
            f"({quote(unknown)}): it is for another model, or of a tool whose names are not known here"
        )
    alphas = stored_alphas(path, checkpoint.header.metadata, groups)
    layers = [_layer(path, module, roles, table[module], alphas) for module, roles in groups.items()]
    twice = [target for target, count in Counter(layer.target for layer in layers).items() if count > 1]
    if twice:
        raise ValueError(f"{path} changes {twice[0].key} twice, under two names: get it again")
    return layers


def _layer(
    path: Path, module: str, roles: Mapping[str, Tensor], target: LoraTarget, alphas: Alphas
) -> LoraLayer:
    if missing := [role for role in ("down", "up") if role not in roles]:
        raise ValueError(f"{path} lacks the {missing[0]} half of {module}: damaged, get it again")
    down, up, mid = roles["down"], roles["up"], roles.get("mid")
    halves = [tensor for tensor in (down, up, mid) if tensor is not None]
    if not all(tensor.is_floating_point() for tensor in halves):
        raise ValueError(f"{path}: {module} is not of floating point numbers: take a file not quantized")
    if not _fits(down, up, mid, target.shape):
        shapes = " and ".join(str(list(tensor.shape)) for tensor in halves)
        raise ValueError(
            f"{path} does not fit the model: for {module} it has {shapes}, the weight is {list(target.shape)}"
        )
    if "alpha" in roles and roles["alpha"].numel() != 1:
        raise ValueError(f"{path}: the alpha of {module} is not one number: damaged, get it again")
    alpha = float(roles["alpha"]) if "alpha" in roles else alphas(module)
    return LoraLayer(target, down, up, mid, 1.0 if alpha is None else alpha / len(down))


def _fits(down: Tensor, up: Tensor, mid: Tensor | None, shape: tuple[int, ...]) -> bool:
    if min(down.ndim, up.ndim) < 2 or 0 in (*down.shape, *up.shape) or up.shape[2:].numel() > 1:
        return False
    if mid is None:
        ranks, kernel = (len(down), len(down)), down.shape[2:]
    else:
        ranks, kernel = tuple(mid.shape[:2]), mid.shape[2:]
    pointwise = mid is None or down.shape[2:].numel() == 1
    same_kernel = tuple(kernel) == shape[2:] or kernel.numel() == math.prod(shape[2:]) == 1
    same_ends = (up.shape[0], down.shape[1]) == shape[:2] and (up.shape[1], len(down)) == ranks
    return pointwise and same_kernel and same_ends


def _check_family(
    path: Path, groups: Mapping[str, Mapping[str, Tensor]], table: Mapping[str, LoraTarget]
) -> None:
    wanted = next((target.shape[1] for name, target in table.items() if name.endswith(TEXT_READERS)), None)
    downs = (
        roles["down"] for name, roles in groups.items() if name.endswith(TEXT_READERS) and "down" in roles
    )
    width = next((down.shape[1] for down in downs if down.ndim > 1 and down.shape[1] != wanted), None)
    if wanted and width:
        raise ValueError(
            f"{path} is a LoRA for {family(width)}, but the model for {family(wanted)}: "
            "take one for this model"
        )
