"""AdamW in its three forms: torch's, with states of 8 bits, and on the host for DeepSpeed's offloading."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

import torch
from torch import nn

from ldm.util import get_obj_from_str
from trainer.settings import Optimization

# Of packages that are used where they are there and are not asked for otherwise.
SMALL_ADAM, HOST_ADAM = "bitsandbytes.optim.AdamW8bit", "deepspeed.ops.adam.DeepSpeedCPUAdam"


def check_packages(settings: Optimization, *, offload: bool = False) -> None:
    """ValueError, with what to do, when the optimizer needs a package that is not installed."""
    if settings.name == "adamw8bit" and not offload and find_spec("bitsandbytes") is None:
        raise ValueError(
            "--use-8bit-adam needs the package bitsandbytes: pip install bitsandbytes, or leave the flag out"
        )
    if offload and find_spec("deepspeed") is None:
        raise ValueError(
            "offloading needs the package deepspeed: pip install deepspeed, or another --strategy"
        )


def make_optimizer(
    parameters: Iterable[nn.Parameter], rate: float, settings: Optimization, *, offload: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of `settings`. Raises ValueError when its package is missing."""
    check_packages(settings, offload=offload)
    options = {
        "lr": rate,
        "betas": settings.betas,
        "weight_decay": settings.weight_decay,
        "eps": settings.epsilon,
    }
    if offload:
        return get_obj_from_str(HOST_ADAM)(list(parameters), adamw_mode=True, **options)
    if settings.name == "adamw8bit":
        return get_obj_from_str(SMALL_ADAM)(list(parameters), **options)
    return torch.optim.AdamW(list(parameters), **options)
