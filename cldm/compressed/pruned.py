"""Models that pruning has made smaller: the units of their layers, and models built to a file's shapes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from torch import nn

from checkpoints.checkpoint import Checkpoint
from cldm.lite import Block
from ldm.modules.attention import CrossAttention, FeedForward
from ldm.modules.layers import ResBlock
from quantize.prune.masks import use_sparse_kernels
from quantize.prune.units import Cut, Group, Shapes, counts_in, shrink_

log = logging.getLogger(__name__)

# Kinds of units. Those of a ResBlock are whole groups of its inner norm: a norm over some channels of a group
# would have another mean, so that no smaller network computed the same.
HEADS, MLP, RES = "heads", "mlp", "res"
TWO_OF_FOUR = "2:4"  # as `Record.masked` calls the pattern
MLP_MULTIPLE = 16  # channels: int8 kernels take them by 16 and more


def prunable(model: nn.Module) -> list[Group]:
    """Units of the U-Net and of control branches of either kind, as far as `model` has them.

    Not those of text encoder and autoencoder: they run once an image, so that little is won.
    """
    groups = []
    for name, module in model.named_modules():
        if of := UNITS.get(type(module)):
            groups += of(f"{name}." if name else "", module)
    return groups


def shrink(model: nn.Module, shapes: Shapes) -> None:
    """Take the units from `model`, built without memory, that weights of these shapes no longer have."""
    groups = prunable(model)
    full = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    counts = counts_in(groups, shapes, full)
    shrink_(model, groups, {name: range(count) for name, count in counts.items()})


def shrink_to_quantized(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Take the units from `model`, built without memory, that a quantized file no longer has."""
    full = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = {name: one.shape for name, one in checkpoint.header.tensors.items()}
    shapes = {name: shape for name, shape in stored.items() if name in full}
    readers = {cut.tensor for group in prunable(model) for cut in group.cuts if cut.axis}
    for name in full.keys() - stored.keys():
        codes = stored.get(f"{name.removesuffix('.weight')}.qweight", ())
        if len(codes) == len(full[name]):
            shapes[name] = codes
        elif codes and name not in readers:  # packed: only its rows are as they were
            shapes[name] = (codes[0], *full[name][1:])
    shrink(model, shapes)


def use_zeros(model: nn.Module, checkpoints: Iterable[Checkpoint]) -> None:
    """Let layers of 2:4 in `checkpoints` compute sparsely where the GPU of `model` can; said in the log."""
    for one in checkpoints:
        masked = one.pruning.masked if one.pruning else {}
        if layers := [name for name, pattern in masked.items() if pattern == TWO_OF_FOUR]:
            log.info("%s: %s", one.label, use_sparse_kernels(model, layers))


def _heads(prefix: str, layer: CrossAttention) -> Iterator[Group]:
    makes = [Cut(f"{prefix}{name}.weight", 0) for name in ("to_q", "to_k", "to_v")]
    width = layer.to_q.weight.shape[0] // layer.heads
    reader = Cut(f"{prefix}to_out.0.weight", 1, reads=True)
    yield Group(prefix[:-1], HEADS, layer.heads, width, (*makes, reader), (f"{prefix}heads",))


def _gated(prefix: str, layer: FeedForward) -> Iterator[Group]:
    # Values, then their gates: two parts.
    return _mlp(prefix[:-1], f"{prefix}net.0.proj", f"{prefix}net.2", layer.net[2], parts=2)


def _plain(prefix: str, block: Block) -> Iterator[Group]:
    return _mlp(f"{prefix}mlp", f"{prefix}mlp.0", f"{prefix}mlp.2", block.mlp[2], parts=1)


def _mlp(name: str, maker: str, reader: str, reading: nn.Module, *, parts: int) -> Iterator[Group]:
    makes = [Cut(f"{maker}.{leaf}", 0, parts=parts) for leaf in ("weight", "bias")]
    count = reading.weight.shape[1]
    multiple = MLP_MULTIPLE if count % MLP_MULTIPLE == 0 else 1
    yield Group(name, MLP, count, 1, (*makes, Cut(f"{reader}.weight", 1, reads=True)), multiple=multiple)


def _inner(prefix: str, block: ResBlock) -> Iterator[Group]:
    norm = block.out_layers[0]
    makes = ("in_layers.2", "emb_layers.1", "out_layers.0")
    cuts = [Cut(f"{prefix}{name}.{leaf}", 0) for name in makes for leaf in ("weight", "bias")]
    reader = Cut(f"{prefix}out_layers.3.weight", 1, reads=True)
    width = norm.num_channels // norm.num_groups
    counters = (f"{prefix}out_layers.0.num_groups",)
    yield Group(f"{prefix}out_layers.0", RES, norm.num_groups, width, (*cuts, reader), counters)


UNITS = {CrossAttention: _heads, FeedForward: _gated, Block: _plain, ResBlock: _inner}
