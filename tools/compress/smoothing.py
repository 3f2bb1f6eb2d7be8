"""Where in our networks channels can be rescaled without changing what comes out
(`quantize.calibration.smoothquant`).

LayerNorm and the GroupNorm of a transformer feed Linear layers and 1x1 convolutions directly. Attention is
linear in its values, and GEGLU in the half that is gated. ResBlocks and the autoencoder have no such place:
SiLU stands between their norms and their convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from cldm.lite import Block
from ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from quantize.calibration.smoothquant import SmoothingPair


def smoothing_pairs(model: nn.Module) -> list[SmoothingPair]:
    """The pairs of all networks in `model`, as far as their layers are plain ones."""
    return [
        pair
        for name, module in model.named_modules()
        if type(module) in FINDERS
        for pair in FINDERS[type(module)](f"{name}." if name else "", module)
    ]


def _of_block(at: str, block: BasicTransformerBlock) -> Iterator[SmoothingPair]:
    yield SmoothingPair(f"{at}norm1", (f"{at}attn1.to_q", f"{at}attn1.to_k", f"{at}attn1.to_v"))
    yield SmoothingPair(f"{at}norm2", (f"{at}attn2.to_q",))
    yield SmoothingPair(f"{at}norm3", (f"{at}ff.net.0.proj",))
    for attention in ("attn1", "attn2"):
        yield SmoothingPair(f"{at}{attention}.to_v", (f"{at}{attention}.to_out.0",))
    yield SmoothingPair(f"{at}ff.net.0.proj", (f"{at}ff.net.2",), outputs=block.ff.net[2].in_features)


def _of_transformer(at: str, _: SpatialTransformer) -> Iterator[SmoothingPair]:
    yield SmoothingPair(f"{at}norm", (f"{at}proj_in",))


def _of_lite_block(at: str, _: Block) -> Iterator[SmoothingPair]:
    yield SmoothingPair(f"{at}norm", (f"{at}mlp.0",))


FINDERS = {BasicTransformerBlock: _of_block, SpatialTransformer: _of_transformer, Block: _of_lite_block}
