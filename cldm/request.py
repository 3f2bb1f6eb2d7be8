"""What is asked of the pipeline: frozen data, all that an image depends on; it travels inside its PNG."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from annotator.registry import get_detector
from cldm.controls import get_control, pick_detector
from ldm.models.diffusion.samplers import get_sampler
from ldm.modules.feature_cache import DEFAULT_CACHE_POINT, get_cache_point

MAX_STEPS = 500  # what the published DDIM can do with 1000 training timesteps
MAX_SAMPLES = 64
MAX_SCALE = 100
MAX_STRENGTH = 10
MIN_SIDE, MAX_SIDE = 64, 4096  # pixels of the short side
MAX_SEED = 2**32 - 1
DEFAULTS = {"resolution": 512, "scale": 9.0, "guided_control": False}  # of fields that a model may decide


def _check(allowed: bool, sentence: str) -> None:
    if not allowed:
        raise ValueError(sentence)


def _check_window(part: str, start: float, end: float) -> None:
    window = f"{part}start={start}, {part}end={end}"
    _check(0 <= start < end <= 1, f"{window}: parts of the steps, 0 <= start < end <= 1")


@dataclass(frozen=True)
class ControlInput:
    """One control map and how strongly it steers.

    strength: factor on every residual, 0 to 2 is usual. start, end: the part of the steps in which it acts, 0
    is the first. branch: name of a loaded control branch, None for the model's own. preprocess: False says
    that the image is a ready-made map. detector: one of the control's, None for its default. params: of the
    detector. scales: one factor a residual in place of strength.
    """

    control: str = "scribble"
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    branch: str | None = None
    preprocess: bool = True
    params: Mapping[str, Any] = field(default_factory=dict)
    scales: tuple[float, ...] | None = None
    detector: str | None = None

    def __post_init__(self) -> None:
        control = get_control(self.control)
        if self.preprocess and control.detectors:
            detector = pick_detector(self.control, self.detector)
            get_detector(detector).checked(detector, self.params)
        fits = 0 <= self.strength <= MAX_STRENGTH
        _check(fits, f"strength={self.strength}: use 0 (no control) to {MAX_STRENGTH}, 1 is as trained")
        _check_window("", self.start, self.end)
        object.__setattr__(self, "scales", None if self.scales is None else tuple(self.scales))


@dataclass(frozen=True)
class Request:
    """An image to be made. None stands for the model's own default.

    scale: of classifier-free guidance, 1 is none. resolution: of the short side, pixels. eta: DDIM's noise, 0
    to 1. guided_control: run the pass without the prompt without the controls too, so that `scale`
    strengthens them as it does the prompt (web UIs: "ControlNet is more important"). denoise: how much of an
    initial image is made anew, 1 is all. Image k of num_samples has seed + k.

    These save time and change the image (docs/speed.md); as they are they do nothing. guidance_start,
    guidance_end: the part of the steps that are guided; the others leave out the pass without the prompt.
    reuse_every: one step in so many computes the whole U-Net and the branches, those between use its deep
    features again, cached at `reuse_cut` (ldm.modules.feature_cache.CACHE_POINTS). control_every: the same
    of the branches alone.
    """

    prompt: str
    negative_prompt: str = ""
    controls: tuple[ControlInput, ...] = (ControlInput(),)
    seed: int = 0
    steps: int = 20
    sampler: str = "ddim"
    eta: float = 0.0
    scale: float | None = None
    resolution: int | None = None
    num_samples: int = 1
    guess_mode: bool = False
    guided_control: bool | None = None
    denoise: float = 1.0
    clip_skip: int | None = None
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    reuse_every: int = 1
    reuse_cut: str = DEFAULT_CACHE_POINT
    control_every: int = 1

    def __post_init__(self) -> None:
        get_sampler(self.sampler)
        named = bool(self.prompt.strip()) or self.guess_mode
        _check(named, "the prompt is empty: say what to draw, or use guess mode, which needs no prompt")
        _check(1 <= self.steps <= MAX_STEPS, f"steps={self.steps}: use 1 to {MAX_STEPS}, 20 is usual")
        _check(0 <= self.seed <= MAX_SEED, f"seed={self.seed}: use 0 to {MAX_SEED}")
        _check(0 <= self.eta <= 1, f"eta={self.eta}: use 0 (deterministic) to 1 (ancestral)")
        _check(0 < self.denoise <= 1, f"denoise={self.denoise}: use more than 0, up to 1 (all new)")
        count, scale, side = self.num_samples, self.scale, self.resolution
        _check(1 <= count <= MAX_SAMPLES, f"num_samples={count}: use 1 to {MAX_SAMPLES}")
        fits = scale is None or 0 <= scale <= MAX_SCALE
        _check(fits, f"scale={scale}: use 0 to {MAX_SCALE}, 1 is no guidance")
        fits = side is None or MIN_SIDE <= side <= MAX_SIDE
        _check(fits, f"resolution={side}: use {MIN_SIDE} to {MAX_SIDE} pixels")
        _check_window("guidance_", self.guidance_start, self.guidance_end)
        for name in ("reuse_every", "control_every"):
            every = getattr(self, name)
            _check(1 <= every <= MAX_STEPS, f"{name}={every}: use 1 (compute every step) to {MAX_STEPS}")
        get_cache_point(self.reuse_cut)
        object.__setattr__(self, "controls", tuple(self.controls))

    def completed(self, defaults: Mapping[str, Any]) -> Request:
        """This request, with the model's `defaults` where it leaves the choice to the model."""
        missing = [name for name in DEFAULTS if getattr(self, name) is None]
        return replace(self, **{name: defaults[name] for name in missing})

    def to_json(self) -> str:
        """One line that `from_json` reads back."""
        data = asdict(self)
        for control in data["controls"]:
            if control["detector"] is None:  # as requests were written before there was a choice
                del control["detector"]
        return json.dumps(data, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Request:
        """The request behind `to_json`'s line; ValueError for text that is none."""
        try:
            data = json.loads(text)
            controls = tuple(ControlInput(**control) for control in data.pop("controls"))
            unknown = set(data) - {one.name for one in fields(cls)}
            if unknown:
                raise TypeError(f"it does not know {', '.join(sorted(unknown))}")
            return cls(controls=controls, **data)
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"this is not a stored request: {error}") from None
