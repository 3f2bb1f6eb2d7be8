"""Random inputs of a denoising step, and the step as our pipeline makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM

TOKENS = 77  # of a prompt, as CLIP pads it
LATENT_FACTOR = 8  # pixels a side of a latent position
TIMESTEP = 500  # the middle of the schedule; time does not depend on it


@dataclass(frozen=True)
class Inputs:
    """What a step is fed with: latents [b, 4, h, w], timesteps [b], text [b, 77, d], hint [b, 3, H, W]."""

    x: Tensor
    t: Tensor
    text: Tensor
    hint: Tensor

    @classmethod
    def random(cls, model: ControlLDM, size: int, batch: int, *, seed: int = 0, t: int = TIMESTEP) -> Inputs:
        """Drawn from `seed`. Latents and hint are the same for the whole batch, as guidance has them."""
        config, noise = model.model.diffusion_model.config, torch.Generator().manual_seed(seed)
        side = size // LATENT_FACTOR
        return cls(
            torch.randn(1, config.in_channels, side, side, generator=noise).repeat(batch, 1, 1, 1),
            torch.full((batch,), t),
            torch.randn(batch, TOKENS, config.context_dim, generator=noise),
            torch.rand(1, 3, size, size, generator=noise).repeat(batch, 1, 1, 1),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Inputs:
        """The same on `device`, in `dtype`; timesteps stay whole numbers."""
        x, text, hint = (value.to(device, dtype) for value in (self.x, self.text, self.hint))
        return Inputs(x, self.t.to(device), text, hint)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The length of their difference over that of `expected`."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def denoising_step(model: ControlLDM, inputs: Inputs) -> Callable[[], Tensor]:
    """A step of U-Net and branch that gives the predicted noise [b, 4, h, w].

    The hint is encoded once, by the first step: in a picture it belongs to no step, nor to loading.
    """
    from cldm.sampling import ControlUnit, combined_residuals, control_scales

    scales = control_scales(1.0, len(model.control_scales), guess_mode=False)
    units: list[ControlUnit] = []  # empty until the first step

    @torch.inference_mode()
    def step() -> Tensor:
        if not units:
            branch = model.control_model
            units.append(ControlUnit(branch, branch.encode_hint(inputs.hint[:1]), scales))
        control = combined_residuals(units, inputs.x, inputs.t, inputs.text)
        cond = {"c_crossattn": [inputs.text], "c_concat": None, "control": control}
        return model.apply_model(inputs.x, inputs.t, cond)

    return step
