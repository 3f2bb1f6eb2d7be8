"""The variational autoencoder between images and latents.

Kingma & Welling 2014; Rombach et al. 2022, section 3.1. Only what generation and control training need: its
own adversarial training is not part of this project. Half precision can overflow in it, which would show as a
black image: the first time that happens it goes over to float32 for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.vae import Decoder, Encoder, VAEConfig

log = logging.getLogger(__name__)

OVERLAP = 0.25  # of a tile's side: wide enough to hide the seams of GroupNorm statistics that differ by tile
LOGVAR_RANGE = (-30.0, 20.0)  # keeps exp() finite in fp32; the published clamp


class DiagonalGaussianDistribution:
    """The latent's posterior N(mean, diag(exp(logvar))), from `moments` [b, 2c, h, w]."""

    def __init__(self, moments: Tensor) -> None:
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(*LOGVAR_RANGE)
        self.std = torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw [b, c, h, w]; the noise comes from the generator's device, or from the CPU (published)."""
        device = "cpu" if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device)
        return self.mean + self.std * noise.to(self.mean)  # [b, c, h, w]

    def mode(self) -> Tensor:
        """The most likely latent, [b, c, h, w]."""
        return self.mean

    def kl(self) -> Tensor:
        """Divergence from N(0, 1), [b]: summed over the rest (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1.0 - self.logvar).sum(dim=(1, 2, 3))


class AutoencoderKL(nn.Module):
    """Images [b, 3, H, W] in [-1, 1] to latents [b, embed_dim, H/8, W/8] and back.

    tile: side in latent pixels of the tiles that `decode` works in, None for the whole image at once.
    """

    def __init__(self, ddconfig: Mapping[str, Any], embed_dim: int, lossconfig: object = None,
                 monitor: str | None = None, tile: int | None = None) -> None:  # fmt: skip
        super().__init__()
        # `lossconfig` and `monitor` belong to training the autoencoder; published yaml files carry them.
        config = VAEConfig.from_params(dict(ddconfig))
        self.tile = tile
        self.overflowed = False  # once True, float32 for good: what overflows does so again
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * embed_dim, 1)  # of means and log-variances
        self.post_quant_conv = nn.Conv2d(embed_dim, config.z_channels, 1)

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """Posterior over the latents of `x` [b, 3, H, W] in [-1, 1]."""
        return DiagonalGaussianDistribution(self._finite(self._moments, x))

    def decode(self, z: Tensor) -> Tensor:
        """Latents [b, embed_dim, h, w] -> images [b, 3, H, W], about [-1, 1]."""
        if self.tile is None or max(z.shape[-2:]) <= self.tile:
            return self._finite(self._pixels, z)
        return self._finite(partial(decode_tiled, self._pixels, tile=self.tile), z)

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """A reconstruction from a sampled latent, and the posterior it came from."""
        posterior = self.encode(x)
        return self.decode(posterior.sample(generator)), posterior

    def _moments(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))

    def _pixels(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))

    def _finite(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`network(x)` in the dtype of `x`, computed in the weights' or, once that overflowed, in float32."""
        if not self.overflowed:
            out = network(x.to(self.quant_conv.weight.dtype))
            if out.dtype == torch.float32 or torch.isfinite(out).all():
                return out.to(x.dtype)
            if not torch.isfinite(x).all():
                log.warning("the autoencoder was given NaN or infinity: what came before it has overflowed")
                return out.to(x.dtype)
            log.warning("the autoencoder overflowed in %s; it works in float32 from now on", out.dtype)
            self.overflowed = True
        self.float()  # all of it: where it overflowed is not known
        with torch.autocast(x.device.type, enabled=False):
            return network(x.float()).to(x.dtype)


def decode_tiled(decode: Callable[[Tensor], Tensor], z: Tensor, *, tile: int) -> Tensor:
    """`decode(z)` put together from tiles of `tile` x `tile` latent pixels: memory follows the tile.

    Tiles see less context than the whole image, so results differ a little near seams; overlaps are blended
    linearly. z: [b, c, h, w]; decode scales both sides by one whole factor. ValueError for a tile below 8.
    """
    if tile < 8:  # fewer latent pixels than the decoder's own reach make every seam visible
        raise ValueError(f"tile={tile}: VAE tiles need at least 8 latent pixels a side")
    overlap = int(tile * OVERLAP)
    total = weight = None  # their sizes follow from the first tile
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
    return total / weight  # every pixel has at least one tile


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]  # the last one ends at the border


def _ramp(length: int, overlap: int, like: Tensor) -> Tensor:
    """Weights of a tile's rows: rising over the first `overlap`, falling over the last."""
    rise = torch.arange(1, length + 1, device=like.device, dtype=like.dtype) / (overlap + 1)
    return torch.minimum(rise, rise.flip(0)).clamp(max=1.0)
