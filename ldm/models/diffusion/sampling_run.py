"""One run from noise to image: what a solver may call and which noise levels it passes.

A solver (ldm.models.diffusion.solvers) is a function of one `SamplerRun` and holds the update rule only.
Timesteps, random draws, masks and progress reports live here, once for all solvers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x [b c h w], t [b]) -> eps [b c h w]
Blend = Callable[[Tensor, Tensor], Tensor]  # (x [b c h w], t [b]) -> x [b c h w]


@dataclass(frozen=True)
class Step:
    """One finished step: `x` [b c h w] after it and the clean latent `x0` [b c h w] that it predicted."""

    index: int  # from 0, the noisiest
    total: int
    t: float  # as the model was told it
    x: Tensor
    x0: Tensor


@dataclass(frozen=True)
class SamplerRun:
    """Everything one run of a solver needs; latents are in the variance-preserving scale.

    timesteps: [n] descending, as the model is told them: int64, or float32 with fractions.
    sigmas: n + 1 levels of noise over signal, descending; the last one is where the walk ends.
    noise: draws standard noise shaped like x_T.
    """

    denoise: Denoise
    x_T: Tensor
    timesteps: Tensor
    sigmas: list[float]  # floats, so that no step waits for a GPU
    noise: Callable[[], Tensor]
    eta: float = 0.0  # of ddim alone
    on_step: Callable[[Step], None] | None = None
    blend: Blend | None = None

    @property
    def total(self) -> int:
        """Number of steps."""
        return len(self.sigmas) - 1

    def predict(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """The latent after `blend`, and the noise the model sees in it at level `index`."""
        t = self.timesteps[index].expand(len(x))
        if self.blend is not None:
            x = self.blend(x, t)
        return x, self.denoise(x, t)

    def report(self, index: int, x: Tensor, x0: Tensor) -> None:
        """Tell `on_step` that step `index` is done."""
        if self.on_step is not None:
            self.on_step(Step(index, self.total, float(self.timesteps[index]), x, x0))


Generators = torch.Generator | Sequence[torch.Generator] | None


def noise_sampler(like: Tensor, generator: Generators) -> Callable[[], Tensor]:
    """A function that draws standard noise for `like` [b c h w] from `generator`, or from torch's global one.

    One generator for the batch, or one for each of its b images: then an image does not depend on those
    beside it. Drawn in float32 on the generator's own device and then moved, so a seed means the same noise
    for every precision and, with a CPU generator, on every machine.
    """
    if isinstance(generator, Sequence):
        draws = [noise_sampler(row, own) for row, own in zip(like.split(1), generator, strict=True)]
        return lambda: torch.cat([draw() for draw in draws])
    source = like.device if generator is None else generator.device
    return lambda: torch.randn(like.shape, generator=generator, device=source).to(like)
