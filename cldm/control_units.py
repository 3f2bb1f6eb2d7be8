"""Control branches at work: which act at a step, how strongly, and the sum of what they add.

Several branches steer one image by adding up their residuals (Zhang et al. 2023, "Composing multiple
ControlNets").
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cldm.cldm import ControlLDM, scale_residuals
from ldm.models.diffusion.sampling_run import Denoise
from ldm.modules.layers import expand_batch

GUESS_MODE_DECAY = 0.825  # per block, deepest = 1: 0.825**12 is about 0.1, so shallow blocks hardly steer
ROUNDING = 1e-9  # a third of three steps is one step


@dataclass(frozen=True)
class ControlUnit:
    """One branch with its features for one request.

    features: what the branch's `encode_hint` made of the map, one or several [1, c, h, w]. scales: one a
    residual. start, end: parts of the steps. pool: average residuals over positions. unconditional: also
    steer the pass without the prompt.
    """

    branch: nn.Module
    features: Tensor | list[Tensor]
    scales: tuple[float, ...]
    start: float = 0.0
    end: float = 1.0
    pool: bool = False
    unconditional: bool = True

    def acts(self, step: int, steps: int) -> bool:
        """Whether the branch steers step `step` of `steps`, counted from 0."""
        return within(step, steps, self.start, self.end)


Compute = Callable[[ControlUnit, Tensor, Tensor, Tensor], list[Tensor]]  # (unit, x, t, text) -> its residuals


def within(step: int, steps: int, start: float, end: float) -> bool:
    """Whether step `step` of `steps`, counted from 0, lies in the part from `start` to `end` (0 to 1)."""
    return step / steps >= start - ROUNDING and (step + 1) / steps <= end + ROUNDING


def step_at(timesteps: Sequence[float], t: Tensor) -> int:
    """Which step a sampler is at, from 0, when it asks for timestep t [b] of its ascending `timesteps`.

    A solver that looks at a noise level twice is at the same step both times.
    """
    # Samplers that are told whole timesteps round them: half a timestep is nearer than any neighbour.
    return max(0, len(timesteps) - 1 - bisect_left(timesteps, float(t[0]) - 0.5))


def control_scales(strength: float, count: int, *, guess_mode: bool) -> tuple[float, ...]:
    """`count` factors, one a residual, shallow first: all `strength`, or fading towards the shallow ones."""
    decay = GUESS_MODE_DECAY if guess_mode else 1.0
    return tuple(strength * decay ** (count - 1 - index) for index in range(count))


def unit_residuals(unit: ControlUnit, x: Tensor, t: Tensor, text: Tensor) -> list[Tensor]:
    """What the unit's branch adds for latents [b, c, h, w], not yet scaled."""
    return unit.branch(x, _for_each(x, unit.features), t, text, encoded=True)


def combined_residuals(
    units: Sequence[ControlUnit], x: Tensor, t: Tensor, text: Tensor, compute: Compute = unit_residuals
) -> list[Tensor] | None:
    """The sum over `units` of their scaled residuals for latents [b, c, h, w]; None for no units."""
    total: list[Tensor] | None = None
    for unit in units:
        residuals = scale_residuals(compute(unit, x, t, text), unit.scales, pool=unit.pool)
        total = residuals if total is None else [a + b for a, b in zip(total, residuals, strict=True)]
    return total


def _for_each(x: Tensor, features: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    if isinstance(features, list):
        return [_for_each(x, one) for one in features]
    return features.expand(len(x), -1, -1, -1) if len(features) == 1 else expand_batch(features, x)


def controlled_denoiser(
    model: ControlLDM, text: Tensor, units: Sequence[ControlUnit], timesteps: Sequence[float]
) -> Denoise:
    """Noise prediction of `model` under `text` [b, n, d] and the branches that act at each of `timesteps`.

    timesteps: ascending, as samplers take them. Latents are float32 outside,
    whatever the model computes in.
    """
    dtype, total = next(model.model.parameters()).dtype, len(timesteps)
    text = text.to(dtype)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        step = step_at(timesteps, t)
        latent = x.to(dtype)
        acting = [unit for unit in units if unit.acts(step, total)]
        control = combined_residuals(acting, latent, t, text)
        cond = {"c_crossattn": [text], "c_concat": None, "control": control}
        return model.predict_eps(latent, t, cond).float()

    return denoise
