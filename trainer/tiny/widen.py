"""An autoencoder that begins where a smaller one ended: same widths, more latent channels.

The first channels are the old ones, whole; the new ones carry little noise and nothing that the decoder
relies on yet. At random, plain colours alone take thousands of steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm.models.autoencoder import AutoencoderKL

NEW_LOGVAR = -6.0  # little noise at first: a channel must carry something before it can be made robust
QUIET = 0.5  # of a new channel's random weights: the old ones know already what they say


@torch.no_grad()
def widen_autoencoder(vae: AutoencoderKL, old: Mapping[str, Tensor]) -> None:
    """Put the weights `old` of an autoencoder with fewer latent channels into `vae`, in place.

    Raises ValueError where anything but the number of latent channels differs.
    """
    new = vae.state_dict()
    z0, z1 = len(old["post_quant_conv.bias"]), len(new["post_quant_conv.bias"])
    for name, value in new.items():
        before = old[name].to(value)
        if name in LATENT:
            LATENT[name](value, before, z0, z1)
        elif value.shape == before.shape:
            value.copy_(before)
        else:
            shapes = f"{tuple(before.shape)} and {tuple(value.shape)}"
            raise ValueError(f"{name}: {shapes} differ by more than the number of latent channels")


def _encoder_out(new: Tensor, old: Tensor, z0: int, z1: int) -> None:
    """Means and log-variances [2 z, ...] of the encoder's last convolution."""
    new.mul_(QUIET if new.ndim > 1 else 0)
    new.view(2, z1, *new.shape[1:])[:, :z0] = old.view(2, z0, *old.shape[1:])


def _quant(new: Tensor, old: Tensor, z0: int, z1: int) -> None:
    """Weight [2 z, 2 z, 1, 1] or bias [2 z]: new means pass, new log-variances are constant."""
    if new.ndim == 1:
        parts = new.zero_().view(2, z1)
        parts[1] = NEW_LOGVAR
        parts[:, :z0] = old.view(2, z0)
        return
    parts = new.zero_().view(2, z1, 2, z1)
    parts[0, :, 0] = torch.eye(z1)
    parts[:, :z0] = 0
    parts[:, :z0, :, :z0] = old.view(2, z0, 2, z0)


def _post_quant(new: Tensor, old: Tensor, z0: int, z1: int) -> None:
    """Weight [z, z, 1, 1] or bias [z]: new channels pass."""
    new.zero_()
    if new.ndim > 1:
        new[:, :, 0, 0] = torch.eye(z1)
        new[:z0, :z0] = old
    else:
        new[:z0] = old


def _decoder_in(new: Tensor, old: Tensor, z0: int, z1: int) -> None:
    """Weight [c, z, 3, 3] of the decoder's first convolution, or its bias, which stays as it is."""
    if new.ndim > 1:
        new.mul_(QUIET)[:, :z0] = old
    else:
        new.copy_(old)


LATENT = {
    "encoder.conv_out.weight": _encoder_out,
    "encoder.conv_out.bias": _encoder_out,
    "quant_conv.weight": _quant,
    "quant_conv.bias": _quant,
    "post_quant_conv.weight": _post_quant,
    "post_quant_conv.bias": _post_quant,
    "decoder.conv_in.weight": _decoder_in,
    "decoder.conv_in.bias": _decoder_in,
}
