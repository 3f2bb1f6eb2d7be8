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
MOMENTS = ("encoder.conv_out.", "quant_conv.")  # their channels are means, then log-variances
LATENT = (*MOMENTS, "post_quant_conv.", "decoder.conv_in.")


@torch.no_grad()
def widen_autoencoder(vae: AutoencoderKL, old: Mapping[str, Tensor]) -> None:
    """Put the weights `old` of an autoencoder with fewer latent channels into `vae`, in place.

    Raises ValueError where anything but the number of latent channels differs.
    """
    for name, value in vae.state_dict().items():
        before = old[name].to(value)
        if value.shape != before.shape:
            if not name.startswith(LATENT) or value.ndim != before.ndim:
                shapes = f"{tuple(before.shape)} and {tuple(value.shape)}"
                raise ValueError(f"{name}: {shapes} differ by more than the number of latent channels")
            _begin(name, value)
        if name.startswith(MOMENTS):
            value, before = (_halved(name, one) for one in (value, before))
        value[tuple(map(slice, before.shape))] = before


def _begin(name: str, value: Tensor) -> None:
    """What new channels start from: 1x1 convolutions pass means on, and say that there is little noise."""
    if value.ndim > 1 and "quant_conv" not in name:
        value.mul_(QUIET)
        return
    value.zero_()
    means = len(value) // 2 if name.startswith(MOMENTS) else len(value)
    if value.ndim > 1:
        value[:means, :means, 0, 0] = torch.eye(means)
    elif name == "quant_conv.bias":
        value[means:] = NEW_LOGVAR


def _halved(name: str, value: Tensor) -> Tensor:
    """A view with means and log-variances apart: [2, z, ...]; quant_conv's weight [2, z, 2, z, 1, 1]."""
    value = value.unflatten(0, (2, -1))
    return value.unflatten(2, (2, -1)) if name == "quant_conv.weight" else value
