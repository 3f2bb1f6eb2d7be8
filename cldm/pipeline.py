"""One request, from a sketch to an image: the same for the shell, the demo, the evaluation and the tests.

Nothing of a request is written to the model; two requests never change each other's strengths.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cldm.cldm import ControlLDM
from cldm.compressed.quantized import load_quantized_model
from cldm.conditioning import control_hint, control_maps, encode_image, encode_texts, fit_image, fit_mask
from cldm.controls import Annotators, branch_names, get_control
from cldm.model import load_control, load_model
from cldm.request import DEFAULTS, ControlInput, Request
from cldm.sampling import ControlUnit, SamplingJob, control_scales, sample_latents
from ldm.config import read_config
from ldm.image import model_to_images
from ldm.models.diffusion.sampling_run import Step
from ldm.modules.attention import slice_attention
from ldm.util import pick_device, pick_dtype
from scenes.things.vocabulary import READERS

FACTOR = 8  # image pixels a latent pixel, each way
VAE_TILE = 64  # latent pixels: an image of 512 a side is still decoded whole
PREVIEW_SIDE = 32  # latent pixels: a preview costs little beside a step


@dataclass(frozen=True)
class Result:
    """Control maps and images, uint8 [H W 3]; the request, its defaults filled in; seconds by stage."""

    maps: list[np.ndarray]
    images: list[np.ndarray]
    request: Request
    seconds: Mapping[str, float] = field(default_factory=dict)


class Pipeline:
    """A loaded model; call it with an image and a `Request`.

    branches: further ones by name. save_memory: tiled decoding, sliced attention, on a GPU one stage's parts.
    annotators: folder of the detectors' weights, None for models/annotators.
    """

    def __init__(
        self, model: ControlLDM, *, defaults: Mapping[str, Any] | None = None,
        branches: Mapping[str, nn.Module] | None = None, save_memory: bool = False,
        annotators: Path | None = None,
    ) -> None:  # fmt: skip
        self.model = model.eval().requires_grad_(False)
        self.defaults = {**DEFAULTS, **(defaults or {})}  # a yaml's `defaults:` come first
        self.branches = dict(branches or {})
        self.save_memory, self.annotators = save_memory, annotators
        if save_memory:
            self.model.first_stage_model.tile = VAE_TILE
            for network in (self.model, *self.branches.values()):
                slice_attention(1, network)

    @classmethod
    def from_files(  # noqa: PLR0913 - one name for each kind of file, and where they go
        cls, config: str | Path, *weights: str | Path, device: str = "auto", dtype: str = "auto",
        controls: Sequence[str | Path] = (), loras: Sequence[tuple[str | Path, float]] = (),
        save_memory: bool = False, quantized: str | Path | None = None, annotators: Path | None = None,
    ) -> Pipeline:  # fmt: skip
        """Load the model of a yaml.

        weights: overlaid in order, such as a base file and a control file; none means those that the yaml
        lists under `weights:`, beside it. controls: further control files, which their branches are called
        after (`branch_names`). loras: files merged into the model, each with its weight. quantized: a file of
        `python -m quantize` in place of both. Errors as of the functions that load, name and pick here.
        """
        settings = read_config(config)
        listed = [Path(config).parent / name for name in settings.get("weights", [])]
        if quantized and (weights or loras):
            raise ValueError(f"{quantized} holds all weights already: merge others before quantizing them")
        if not (weights or listed or quantized):
            raise ValueError(f"{config} ships no weights: name the files, a base model and a control branch")
        place = pick_device(device)
        options = {"device": place, "dtype": pick_dtype(dtype, place)}
        files = branch_names(controls)
        if quantized:
            model = load_quantized_model(config, quantized, **options)
        else:
            model = load_model(config, *(weights or listed), loras=loras, **options)
        branches = {name: load_control(config, path, **options) for name, path in files.items()}
        rest = {"save_memory": save_memory, "annotators": annotators}
        return cls(model, defaults=settings.get("defaults"), branches=branches, **rest)

    @torch.inference_mode()
    def __call__(
        self, image: np.ndarray | Sequence[np.ndarray], request: Request, *, init: np.ndarray | None = None,
        mask: np.ndarray | None = None, on_step: Callable[[Step], None] | None = None,
    ) -> Result:  # fmt: skip
        """Make the images of `request`.

        image: uint8 [H W], [H W 3] or [H W 4], one for every control or one for all. init: image to start
        from (img2img). mask: uint8 [H W], white where `init` is to be painted anew. on_step hears of every
        step. Raises ValueError for images and settings that do not fit each other.
        """
        clock = _Clock()
        request = request.completed(self.defaults)
        if init is None and (mask is not None or request.denoise < 1):
            raise ValueError("a mask or denoise below 1 needs an initial picture (init)")
        maps = control_maps(image, request, Annotators(self.annotators, self.model.device))
        size = maps[0].shape[:2]
        init = None if init is None else fit_image(init, size)
        mask = None if mask is None else fit_mask(mask, size)
        clock.lap("annotate")
        texts = self._encode_texts([request.prompt] * request.num_samples, request)
        known = None if init is None else encode_image(self.model, init)
        clock.lap("encode")
        pairs = zip(request.controls, maps, strict=True)
        hints = [control_hint(control, control_map, mask) for control, control_map in pairs]
        job = SamplingJob(
            request=request,
            texts=texts,
            units=self._units(request, hints),
            noise=[torch.Generator().manual_seed(request.seed + k) for k in range(request.num_samples)],
            size=(size[0] // FACTOR, size[1] // FACTOR),
            known=known,
            keep=None if mask is None else _latent_keep(mask),
            on_step=on_step,
            together=not self.save_memory,
        )
        images = self._draw(job, clock)
        if mask is not None:
            # The autoencoder must not touch what is to be kept.
            images = [np.where(mask[..., None], one, init) for one in images]
        clock.lap("decode")
        return Result(maps, images, request, clock.seconds)

    @torch.inference_mode()
    def generate(
        self, prompts: list[str], hints: Tensor | None, *, seed: int, **fields: Any
    ) -> list[np.ndarray]:
        """One image, uint8 [H W 3], a prompt: a batch of different images, as evaluation needs them.

        hints: [n, 3, H, W] in [0, 1], one a prompt; None for no control at the model's own resolution.
        fields: of the `Request` that says how.
        """
        request = Request(prompts[0], seed=seed, **fields).completed(self.defaults)
        height, width = (request.resolution,) * 2 if hints is None else hints.shape[-2:]
        if hints is None:
            request = replace(request, controls=())
        job = SamplingJob(
            request=request,
            texts=self._encode_texts(prompts, request),
            units=self._units(request, [] if hints is None else [hints]),
            noise=torch.Generator().manual_seed(seed),
            size=(height // FACTOR, width // FACTOR),
            together=not self.save_memory,
        )
        return self._draw(job, _Clock())

    @torch.inference_mode()
    def preview(self, x0: Tensor) -> list[np.ndarray]:
        """Rough images, at most 256 pixels a side, of predicted latents [n, c, h, w] (`Step.x0`)."""
        ratio = min(1.0, PREVIEW_SIDE / max(x0.shape[-2:]))
        small = x0 if ratio == 1 else F.interpolate(x0, scale_factor=ratio, mode="area")
        device = next(self.model.first_stage_model.parameters()).device  # the CPU where memory is short
        return model_to_images(self.model.decode_first_stage(small.to(device)))

    def _shift(self, *, is_diffusing: bool) -> None:
        if self.save_memory and self.model.device.type != "cpu":
            self.model.low_vram_shift(is_diffusing=is_diffusing)

    def _encode_texts(self, prompts: list[str], request: Request) -> tuple[Tensor, Tensor]:
        self._shift(is_diffusing=False)
        read = READERS[self.defaults.get("vocabulary")]
        return encode_texts(self.model.cond_stage_model, [read(one) for one in prompts], request)

    def _units(self, request: Request, hints: Sequence[Tensor]) -> list[ControlUnit]:
        """The branches of a complete `request` with their hints, [1 or n, 3, H, W], one a control."""
        self._shift(is_diffusing=True)
        return [self._unit(request, *pair) for pair in zip(request.controls, hints, strict=True)]

    def _unit(self, request: Request, control: ControlInput, hint: Tensor) -> ControlUnit:
        kind, branch, model = get_control(control.control), self._branch(control.branch), self.model
        count = len(model.control_scales)
        scales = control.scales or control_scales(control.strength, count, guess_mode=request.guess_mode)
        if len(scales) != count:
            raise ValueError(f"scales has {len(scales)} factors: this model has {count} residuals")
        dtype = next(model.model.parameters()).dtype
        return ControlUnit(
            branch=branch,
            features=branch.encode_hint(hint.to(model.device, dtype)),
            scales=scales,
            start=control.start,
            end=control.end,
            pool=kind.pool or (control.branch is None and model.global_average_pooling),
            unconditional=not (request.guess_mode or request.guided_control or kind.conditional_only),
        )

    def _draw(self, job: SamplingJob, clock: _Clock) -> list[np.ndarray]:
        latents = sample_latents(self.model, job)
        clock.lap("sample")
        self._shift(is_diffusing=False)
        return model_to_images(self.model.decode_first_stage(latents))

    def _branch(self, name: str | None) -> nn.Module:
        if name is None:
            return self.model.control_model
        if name not in self.branches:
            known = ", ".join(self.branches) or "none; load files with `controls=`"
            raise ValueError(f"there is no control branch {name!r}; loaded are {known}")
        return self.branches[name]


def _latent_keep(mask: np.ndarray) -> Tensor:
    """[1, 1, h, w]: 1 where no pixel of a latent cell is to be painted anew."""
    return 1 - F.max_pool2d(torch.from_numpy(mask)[None, None].float(), FACTOR)


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now
