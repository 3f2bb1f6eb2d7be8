"""Steps between that use features again: deep ones of the U-Net, and what the control branches added.

Ma et al. 2023, "DeepCache", and Li et al. 2023, "Faster Diffusion", with control: a branch mostly feeds
blocks that such a step leaves out, so it rests too. A step is a noise level: all calls of a second-order
solver at one timestep are of one kind. The cache lives in the denoiser of one pass of one request:
images that are made at the same time never meet.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cldm.cldm import ControlLDM
from cldm.control_units import ControlUnit, combined_residuals, step_at, unit_residuals
from cldm.request import Request
from ldm.modules.feature_cache import get_cache_point


class CachedDenoiser:
    """A pass of one request, called by one sampler: `cldm.control_units.controlled_denoiser` with a memory.

    request: its `reuse_every`, `reuse_cut` and `control_every` say what is computed when. Where that is
    everything at every step, both give the same numbers to the bit. ValueError for a U-Net too small.
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

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise, float32 [b, c, h, w], that the model sees in x [b, c, h, w] at t [b]."""
        step, total, latent = step_at(self._timesteps, t), len(self._timesteps), x.to(self._dtype)
        acting = {id(unit): unit for unit in self._units if unit.acts(step, total)}
        whole = self._is_whole(step, list(acting))
        if whole:
            self._whole = step, list(acting)
            if self._cache is not None:
                self._cache.deep = None

        def residuals(unit: ControlUnit, *inputs: Tensor) -> list[Tensor]:
            made, cached = self._residuals.get(id(unit), (None, []))
            if whole and _is_due(step, made, self._request.control_every):
                cached = unit_residuals(unit, *inputs)
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
