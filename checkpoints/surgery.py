"""Cutting and joining checkpoints: pure functions on state dicts under the original names.

Tensors are passed on, not copied, and may be lazy: then whole files go through that do not fit into memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from checkpoints.files.lazy import Values, by_rows
from checkpoints.names.original import EMA_PREFIX, ema_names, part_of
from ldm.models.diffusion.schedule import schedule_buffers

State = Mapping[str, Values]

CONTROL = "control_model."  # prefixes as published
UNET = "model.diffusion_model."
FROM_NEW_BASE = ("first_stage_model.", "cond_stage_model.")  # of a full model: these two learn with no branch
EXACT = {"logvar", "model_ema.decay", "model_ema.num_updates"}  # besides the schedule; 0.9999 is 1 in fp16
FOR_TRAINING = {
    re.compile(r"^model_ema\."): "moving averages (EMA)",
    re.compile(r"^(first_stage_model\.)?loss\."): "losses of the autoencoder's own training",
}
COUNT_PIECE = 1 << 20  # values
REPLACED = "weights whose moving averages take their place"


def add_control(base: State, fresh: State) -> tuple[dict[str, Values], list[str]]:
    """`base` with a branch that begins as `fresh`, but for what the U-Net has of the same name and shape.

    With it come the names of what was copied. fresh: an untrained branch without prefix, which decides names
    and dtypes. Raises ValueError for a base without a U-Net or with a branch.
    """
    if not any(name.startswith(UNET) for name in base):
        raise ValueError(f"no U-Net to copy from: no name begins with {UNET}")
    if any(name.startswith(CONTROL) for name in base):
        raise ValueError("a control branch is inside already")
    twins = {name: base.get(UNET + name) for name in fresh}
    copies = {
        CONTROL + name: twin if twin.dtype == fresh[name].dtype else twin.to(fresh[name].dtype)
        for name, twin in twins.items()
        if twin is not None and tuple(twin.shape) == tuple(fresh[name].shape)
    }
    branch = {CONTROL + name: copies.get(CONTROL + name, value) for name, value in fresh.items()}
    return {**base, **branch}, list(copies)


def extract_control(state: State) -> dict[str, Values]:
    """The control branch of `state`; ValueError where there is none."""
    branch = {name: tensor for name, tensor in state.items() if name.startswith(CONTROL)}
    if not branch:
        raise ValueError(f"no control branch inside: no name begins with {CONTROL}")
    return branch


def transfer_control(state: State, old_base: State, new_base: State) -> dict[str, Values]:
    """A control branch, or a full model, moved from the base it was trained on to another one.

    Each weight that the branch once copied from the U-Net moves by what the bases differ in: w + (new - old),
    computed in float32, in the dtype of w. Of a full model the U-Net moves so too, and autoencoder and text
    encoder are the new base's. Raises ValueError for bases that do not fit.
    """
    for label, base in (("old", old_base), ("new", new_base)):
        if not any(name.startswith(UNET) for name in base):
            raise ValueError(f"the {label} base has no U-Net: no name begins with {UNET}")
    moved = {}
    for name, tensor in state.items():
        twin = UNET + name.removeprefix(CONTROL) if name.startswith(CONTROL) else name
        if name.startswith(FROM_NEW_BASE):
            moved[name] = _take(new_base, name)
        elif twin.startswith(UNET) and (twin in old_base or twin in new_base):
            moved[name] = _offset(tensor, twin, old_base, new_base)
        else:
            moved[name] = tensor  # hint block and zero convolutions have no twin: they were never copied
    return moved


def strip(state: State, *, use_ema: bool = False) -> tuple[dict[str, Values], dict[str, list[str]]]:
    """`state` without what only training needs, and the names of that by reason.

    use_ema: moving averages take the place of their weights. ValueError where there are none.
    """
    averages = {name: own for name, own in ema_names(state).items() if name in state} if use_ema else {}
    if use_ema and not averages:
        raise ValueError(f"no moving averages inside: no name begins with {EMA_PREFIX}")
    replaced = {own: state[average] for average, own in averages.items()}
    kept: dict[str, Values] = {}
    gone: dict[str, list[str]] = {}
    for name, tensor in state.items():
        reason = next((why for pattern, why in FOR_TRAINING.items() if pattern.search(name)), None)
        if reason is None:
            kept[name] = replaced.get(name, tensor)
        elif name not in averages:
            gone.setdefault(reason, []).append(name)
    if replaced:
        gone[REPLACED] = list(replaced)  # said too: the file loses these numbers for good
    return kept, gone


def to_dtype(state: State, dtype: torch.dtype, overflow: Counter[str]) -> dict[str, Values]:
    """`state` with its weights in `dtype`; integers, schedule and counters stay as they are.

    overflow: counts, for each tensor as it is read, the values that became infinite.
    """
    exact = EXACT | schedule_buffers(2, 0.1, 0.2).keys()  # any schedule has these names

    def cast(name: str, values: Tensor) -> Tensor:
        if lost := _overflowing(values, dtype):
            overflow[name] += lost  # a large tensor comes some rows at a time
        return values.to(dtype)

    def stays(name: str, tensor: Values) -> bool:
        return name in exact or not tensor.dtype.is_floating_point or tensor.dtype == dtype

    return {
        name: tensor if stays(name, tensor) else by_rows(partial(cast, name), dtype, tensor)
        for name, tensor in state.items()
    }


def _overflowing(values: Tensor, dtype: torch.dtype) -> int:
    """How many finite `values` have no finite counterpart in `dtype`."""
    if not values.numel() or max(map(abs, torch.stack(values.aminmax()).tolist())) <= torch.finfo(dtype).max:
        return 0
    # In pieces, since comparing makes copies; only here, since hardly a tensor gets so far.
    pieces = values.flatten().split(COUNT_PIECE)
    return sum(int((piece.isfinite() & piece.to(dtype).isinf()).sum()) for piece in pieces)


def _offset(tensor: Values, twin: str, old_base: State, new_base: State) -> Values:
    old, new = _take(old_base, twin, "old"), _take(new_base, twin)
    for label, base in (("old", old), ("new", new)):
        if base.shape != tensor.shape:
            raise ValueError(
                f"{twin} is {list(base.shape)} in the {label} base, but {list(tensor.shape)} in the model to "
                "move: take bases of its family"
            )

    def move(w: Tensor, old: Tensor, new: Tensor) -> Tensor:
        return (w.float() + (new.float() - old.float())).to(w.dtype)

    return by_rows(move, tensor.dtype, tensor, old, new)


def _take(base: State, name: str, label: str = "new") -> Values:
    if name not in base:
        raise ValueError(
            f"the {label} base lacks {name} (its {part_of(name)} is not whole): take a whole one"
        )
    return base[name]
