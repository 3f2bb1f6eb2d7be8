"""What one call of a U-Net leaves so that the next ones can leave its deep blocks out.

Along the schedule deep features change slowly: Ma et al. 2023, "DeepCache", use what enters the last output
blocks again; Li et al. 2023, "Faster Diffusion", all that the encoder puts out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

DEFAULT_CACHE_POINT = "outer-2"
Skip = tuple[Tensor, Tensor | None]  # of an input block, and the residual that is to be added to it


@dataclass
class FeatureCache:
    """Features of the last whole call. They belong to whoever samples one image, never to the model.

    encoder: how many input blocks, from the first, every call computes; decoder: how many output blocks, up
    to the last. deep: what entered the first of these output blocks; None makes the next call a whole one.
    skips: of the input blocks that other calls leave out, as far as these output blocks take them.
    """

    encoder: int
    decoder: int
    deep: Tensor | None = None
    skips: list[Skip] = field(default_factory=list)

    def store(self, h: Tensor, skips: list[Skip]) -> None:
        """Keep `h` [b, c, h, w], about to enter an output block, if it is the first that is always computed.

        skips: those left for this block and the later ones, in the order of the input blocks.
        """
        if len(skips) == self.decoder:
            self.deep, self.skips = h, skips[self.encoder :]


@dataclass(frozen=True)
class CachePoint:
    """Which blocks every call computes: the first input blocks and the last output blocks, None for all."""

    encoder: int
    decoder: int | None

    def make_cache(self, blocks: int) -> FeatureCache:
        """An empty cache for a U-Net of that many input blocks, and as many output blocks.

        Raises ValueError for one that is too small to be cached here.
        """
        decoder = blocks if self.decoder is None else self.decoder
        if max(self.encoder, decoder) > blocks:
            raise ValueError(
                f"this U-Net has {blocks} output blocks, too few for a cut that computes {decoder}"
            )
        return FeatureCache(self.encoder, decoder)


def get_cache_point(name: str) -> CachePoint:
    """The cache point of that name; ValueError lists the known ones."""
    if name not in CACHE_POINTS:
        known = ", ".join(CACHE_POINTS)
        raise ValueError(f"reuse_cut={name!r} is no way to cut the U-Net: choose from {known}")
    return CACHE_POINTS[name]


CACHE_POINTS = {
    "outer-1": CachePoint(1, 1),  # the outermost block of each half: DeepCache's cheapest
    "outer-2": CachePoint(2, 2),
    "outer-3": CachePoint(3, 3),  # all of the finest resolution of SD 1.5
    "decoder": CachePoint(0, None),  # the whole decoder on the encoder's old features: Faster Diffusion
}
