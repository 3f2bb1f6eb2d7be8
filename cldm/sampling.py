"""From embeddings, control branches and noise to latents: the part of a request that runs the U-Net.

Several branches steer one image by adding up their residuals (Zhang et al. 2023, "Composing multiple
ControlNets"). Steps between may use features again (Ma et al. 2023, "DeepCache", and Li et al. 2023, "Faster
Diffusion"): deep ones of the U-Net, and what the branches added, since a branch mostly feeds blocks that such
a step leaves out. All calls of a second-order solver at one noise level are one step, of one kind.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cldm.cldm import ControlLDM, scale_residuals
from cldm.request import Request
from ldm.models.diffusion.samplers import classifier_free_guidance, get_sampler, inpaint_blend, start_latent
from ldm.models.diffusion.sampling_run import Generators, Step, noise_sampler
from ldm.modules.feature_cache import get_cache_point
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
    pool: bool = False  # shuffle: what it shows has no place
    unconditional: bool = True  # False: guess mode, and models whose guidance strengthens control

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


def _unscaled(unit: ControlUnit, x: Tensor, t: Tensor, text: Tensor) -> list[Tensor]:
    return unit.branch(x, _for_each(x, unit.features), t, text, encoded=True)


def combined_residuals(
    units: Sequence[ControlUnit], x: Tensor, t: Tensor, text: Tensor, compute: Compute = _unscaled
) -> list[Tensor] | None:
    """The sum over `units` of their scaled residuals for latents [b, c, h, w]; None for no units."""
    total: list[Tensor] | None = None  # shallow first, the middle's last
    for unit in units:
        residuals = scale_residuals(compute(unit, x, t, text), unit.scales, pool=unit.pool)
        total = residuals if total is None else [a + b for a, b in zip(total, residuals, strict=True)]
    return total


def _for_each(x: Tensor, features: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    if isinstance(features, list):
        return [_for_each(x, one) for one in features]
    return features.expand(len(x), -1, -1, -1) if len(features) == 1 else expand_batch(features, x)


class ControlledDenoiser:
    """Noise prediction of `model` under `text` [b, n, d] and the branches that act at each of `timesteps`.

    A pass of one request, called by one sampler: images that are made at the same time share no cache.
    timesteps: ascending, as samplers take them. request: its `reuse_every`, `reuse_cut` and `control_every`
    say what is computed when. ValueError for a U-Net too small for the cut.
    """

    def __init__(
        self, model: ControlLDM, text: Tensor, units: Sequence[ControlUnit], timesteps: Sequence[float],
        request: Request,
    ) -> None:  # fmt: skip
        self._model, self._units, self._timesteps, self._request = model, units, timesteps, request
        self._dtype = next(model.model.parameters()).dtype
        self._text = text.to(self._dtype)
        blocks = len(model.model.diffusion_model.input_blocks)
        point = get_cache_point(request.reuse_cut)
        self._cache = point.make_cache(blocks) if request.reuse_every > 1 else None
        self._whole: tuple[int, list[int]] | None = None  # step of the last whole call, and who acted in it
        self._residuals: dict[int, tuple[int, list[Tensor]]] = {}  # by unit: when they were made, unscaled
        self._reuses = request.reuse_every > 1 or request.control_every > 1

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise, always float32, that the model sees in x [b, c, h, w] at t [b]."""
        step, total, latent = step_at(self._timesteps, t), len(self._timesteps), x.to(self._dtype)
        acting = {id(unit): unit for unit in self._units if unit.acts(step, total)}
        whole = self._is_whole(step, list(acting))
        if whole:
            self._whole = step, list(acting)
            if self._cache is not None:
                self._cache.deep = None  # makes the next call a whole one

        def residuals(unit: ControlUnit, *inputs: Tensor) -> list[Tensor]:
            made, cached = self._residuals.get(id(unit), (None, []))
            if whole and _is_due(step, made, self._request.control_every):
                cached = _unscaled(unit, *inputs)
                if self._reuses:
                    self._residuals[id(unit)] = step, cached
            return cached

        control = combined_residuals(list(acting.values()), latent, t, self._text, residuals)
        cond = {"c_crossattn": [self._text], "c_concat": None, "control": control, "cache": self._cache}
        return self._model.predict_eps(latent, t, cond).float()

    def _is_whole(self, step: int, acting: list[int]) -> bool:
        if self._whole is None:
            return True
        before, acted = self._whole
        return acting != acted or _is_due(step, before, self._request.reuse_every)


def _is_due(step: int, before: int | None, every: int) -> bool:
    """Whether what is computed once in `every` steps, last at step `before`, is to be computed again."""
    return before is None or step % every == 0 or step // every != before // every


@dataclass(frozen=True)
class SamplingJob:
    """All that `sample_latents` needs; `request` must be complete.

    texts: embeddings of the prompts and of the negative prompts, [n, m, d] each. size: (h, w) of the latents.
    known: clean latents [1, c, h, w] to start from. keep: [1, 1, h, w], 1 where `known` stays. together: with
    and without the prompt in one call where both are steered alike, which takes more memory and less time.
    """

    request: Request
    texts: tuple[Tensor, Tensor]
    units: Sequence[ControlUnit]
    noise: Generators
    size: tuple[int, int]
    known: Tensor | None = None
    keep: Tensor | None = None
    on_step: Callable[[Step], None] | None = None
    together: bool = True


def sample_latents(model: ControlLDM, job: SamplingJob) -> Tensor:
    """Clean scaled latents, float32 [n, c, h, w]."""
    request, n = job.request, len(job.texts[0])
    sampler, abar = get_sampler(request.sampler), model.alphas_cumprod
    timesteps = sampler.timesteps(request.steps, abar, request.denoise)
    channels = model.model.diffusion_model.config.in_channels
    x_T = noise_sampler(torch.empty(n, channels, *job.size, device=model.device), job.noise)()
    blend = None
    if job.known is not None:
        known = job.known.expand(n, -1, -1, -1)
        if request.denoise < 1:
            x_T = start_latent(known, x_T, timesteps, abar)  # the picture, as noisy as the walk begins
        if job.keep is not None:
            blend = inpaint_blend(known, job.keep.to(known), abar, job.noise)
    unconditional = [unit for unit in job.units if unit.unconditional]
    cond = ControlledDenoiser(model, job.texts[0], job.units, timesteps, request)
    uncond = ControlledDenoiser(model, job.texts[1], unconditional, timesteps, request)

    def guides(t: Tensor) -> bool:
        step = step_at(timesteps, t)
        return within(step, len(timesteps), request.guidance_start, request.guidance_end)

    both = None
    reuses = request.reuse_every > 1 or request.control_every > 1
    if job.together and len(unconditional) == len(job.units) and not reuses:
        both = ControlledDenoiser(model, torch.cat(job.texts), job.units, timesteps, request)
    denoise = classifier_free_guidance(cond, uncond, request.scale, guides, both)
    hooks = {"generator": job.noise, "on_step": job.on_step, "blend": blend}
    return sampler(denoise, x_T, timesteps, abar, eta=request.eta, **hooks)
