"""One request on several models, one after the other: pictures, how far they differ, and what each costs.

Each model draws a step first, unmeasured, and one whose memory is counted. So the seconds of all are those
of a warm model that has the machine to itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.profiler import ProfilerActivity, profile

from app.drawing import Pictures
from app.jobs import Job, Progress
from app.request_data import typed
from ldm.models.diffusion.sampling_run import Step

if TYPE_CHECKING:
    from app.models import LoadedModel, Models
    from app.provenance import Provenance
    from cldm.request import Request

LEAST_MODELS, MOST_MODELS = 2, 4
DIFFERENCE_GAIN = 4  # so that a difference of a few levels can be seen
ALLOCATION = "[memory]"  # torch's profiler calls an event so when memory is taken or given back


@dataclass(frozen=True)
class Compared:
    """What one model made of the request: uint8 [H W 3], and its price.

    peak_bytes: its weights and the most it held beside them. psnr, ssim: to the first model's picture, None
    for that one itself; psnr is infinite for the same picture.
    """

    model: str
    image: np.ndarray
    request: Request
    provenance: Provenance
    seconds: float
    peak_bytes: int
    file_bytes: int
    psnr: float | None = None
    ssim: float | None = None


def check_models(names: Any, models: Models) -> list[str]:
    """The models that a client names; ValueError in one sentence unless they are 2 to 4 known ones."""
    if not isinstance(names, list | tuple):
        raise ValueError("models must be a list of names")
    if not LEAST_MODELS <= len(set(map(str, names))) == len(names) <= MOST_MODELS:
        raise ValueError(f"choose {LEAST_MODELS} to {MOST_MODELS} different models: {len(names)} were named")
    return [models.check(typed("models", name, str)) for name in names]


def compare(
    models: Models, names: Sequence[str], request: Request, pictures: Pictures, job: Job
) -> list[Compared]:
    """The first picture of `request` by each of the models, in their order.

    `job` hears how far it is and may stop it between steps. Errors as `Models.get` and `Pipeline.__call__`.
    """
    made: list[Compared] = []
    request = replace(request, num_samples=1)
    for number, name in enumerate(names):
        job.progress = Progress(stage=name, picture=number, pictures=len(names))
        job.check()
        one = _draw(models.get(name), request, pictures, job)
        if made:
            psnr, ssim = likeness(made[0].image, one.image)
            one = replace(one, psnr=psnr, ssim=ssim)
        made.append(one)
    return made


def likeness(image: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """PSNR in dB and SSIM of two pictures, uint8 [H W 3]."""
    from skimage.metrics import structural_similarity

    error = np.mean((image.astype(np.float64) - other) ** 2)
    psnr = float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
    return psnr, float(structural_similarity(image, other, channel_axis=2))


def difference(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where two pictures differ, four times as bright as it is: uint8 [H W 3]."""
    gap = np.abs(image.astype(np.int16) - other)
    return np.clip(gap * DIFFERENCE_GAIN, 0, 255).astype(np.uint8)


def peak_of(run: Callable[[], object]) -> int:
    """The most bytes of tensors that `run` takes at a time, on the device where it takes most."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as counted:
        run()
    now = most = 0
    for event in counted.profiler.kineto_results.events():
        if event.name() == ALLOCATION:
            now += event.nbytes()
            most = max(most, now)
    return most


def prepare_counting() -> None:
    """Set torch's profiler up. Called by the thread that imported torch, or it complains later."""
    peak_of(lambda: None)


def _draw(loaded: LoadedModel, request: Request, pictures: Pictures, job: Job) -> Compared:
    def on_step(step: Step) -> None:
        job.check()
        job.progress = replace(job.progress, step=step.index + 1, steps=step.total)

    def run(asked: Request) -> Any:
        return loaded.pipeline(
            pictures.images, asked, init=pictures.init, mask=pictures.mask, on_step=on_step
        )

    probe = request if request.denoise < 1 else replace(request, steps=1)  # few steps have no part of one
    run(probe)  # packs quantized weights, which are not to be counted a second time
    held = peak_of(lambda: run(probe))
    start = time.perf_counter()
    result = run(request)
    return Compared(
        loaded.name, result.images[0], result.request, loaded.provenance, time.perf_counter() - start,
        loaded.weight_bytes + held, loaded.file_bytes,
    )  # fmt: skip
