"""Decode a large latent in overlapping tiles, so that memory follows the tile and not the image.

Tiles see less context than the whole image, so results differ a little near seams; the overlap is blended
linearly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

OVERLAP = 0.25  # of a tile's side: wide enough to hide the seams of GroupNorm statistics that differ by tile


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def _ramp(length: int, overlap: int, like: Tensor) -> Tensor:
    """Weights of a tile's rows: rising over the first `overlap`, falling over the last."""
    rise = torch.arange(1, length + 1, device=like.device, dtype=like.dtype) / (overlap + 1)
    return torch.minimum(rise, rise.flip(0)).clamp(max=1.0)


def decode_tiled(decode: Callable[[Tensor], Tensor], z: Tensor, *, tile: int) -> Tensor:
    """`decode(z)` put together from tiles of `tile` x `tile` latent pixels.

    z: [b, c, h, w]; decode must scale both sides by one whole factor. Raises ValueError for a tile below 8.
    """
    if tile < 8:  # fewer latent pixels than the decoder's own reach make every seam visible
        raise ValueError(f"tile={tile}: VAE tiles need at least 8 latent pixels a side")
    overlap = int(tile * OVERLAP)
    total = weight = None
    for top in _starts(z.shape[-2], tile, overlap):
        for left in _starts(z.shape[-1], tile, overlap):
            piece = decode(z[..., top : top + tile, left : left + tile])
            if total is None:
                factor = piece.shape[-1] // min(tile, z.shape[-1])
                total = piece.new_zeros(*piece.shape[:2], z.shape[-2] * factor, z.shape[-1] * factor)
                weight = torch.zeros_like(total[:1, :1])
            rows, columns = (_ramp(side, overlap * factor, piece) for side in piece.shape[-2:])
            mask = rows[:, None] * columns[None, :]
            window = (..., slice(top * factor, top * factor + piece.shape[-2]),
                      slice(left * factor, left * factor + piece.shape[-1]))  # fmt: skip
            total[window] += piece * mask
            weight[window] += mask
    return total / weight
