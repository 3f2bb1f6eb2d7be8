"""All detectors on one picture: their maps with seconds, and what the others need."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from annotator.registry import DETECTORS, detect, get_detector, ready
from app.jobs import Job, Progress
from app.request_data import typed
from cldm.controls import Annotators


@dataclass(frozen=True)
class Detected:
    """The map that a detector made, uint8 [H W 3], and how long that took."""

    detector: str
    map: np.ndarray
    seconds: float


@dataclass
class Annotated:
    """maps: of the detectors that are ready; missing: what makes each of the others so, in one sentence."""

    maps: list[Detected] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def check_detectors(names: Any) -> list[str]:
    """The detectors that a client names, all of them for None; ValueError in one sentence."""
    if names is None:
        return list(DETECTORS)
    if not isinstance(names, list | tuple) or not 0 < len(names) <= len(DETECTORS):
        raise ValueError(f"detectors must be a list of 1 to {len(DETECTORS)} names, or null for all")
    for name in names:
        get_detector(typed("detectors", name, str))
    return list(dict.fromkeys(names))


def annotate_all(
    image: np.ndarray, names: Sequence[str], resolution: int, annotators: Annotators, job: Job
) -> Annotated:
    """What the detectors `names` see in `image`; `job` hears how far it is and may stop it in between.

    What a detector cannot do with this picture, or without a text, is its sentence among the missing ones.
    """
    job.result = found = Annotated()
    places = {"folder": annotators.folder, "device": annotators.device}
    for number, name in enumerate(names):
        job.check()
        job.progress = Progress(stage=name, step=number, steps=len(names))
        if cure := ready(name, annotators.folder):
            found.missing[name] = cure
            continue
        start = time.perf_counter()
        try:
            made = detect(name, image, resolution=resolution, **places)
        except ValueError as error:
            found.missing[name] = str(error)
        else:
            found.maps.append(Detected(name, made, time.perf_counter() - start))
    return found
