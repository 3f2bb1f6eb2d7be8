"""Pictures on disk with what they are compared with: known by their content, decoded where it is needed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from annotator.util import HWC3
from eval.cache import key_of
from eval.metrics.metric import Picture, Role
from ldm.image import read_image

NOTHING = {
    "truth": "there is nothing to compare with: name TRUTH, a second folder",
    "map": "there is nothing to compare with: give --maps FOLDER",
}


@dataclass(frozen=True)
class ImageFile:
    """A file of a picture. size: upright width and height. request: of a picture of ours, else empty."""

    path: Path
    format: str
    size: tuple[int, int]
    request: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def stem(self) -> str:
        """What it is called in every folder."""
        return self.path.stem


@dataclass(frozen=True)
class Case:
    """A picture with what it is compared with, still on disk. resize: to the size of its truth."""

    image: ImageFile
    truth: ImageFile | None = None
    map: ImageFile | None = None
    prompt: str | None = None
    control: tuple[str, Mapping[str, Any]] | None = None
    resize: bool = False

    def key(self, needs: Iterable[Role]) -> bytes:
        """Of all that a feature with these needs is computed from."""
        parts = [self.image.sha256]
        for need in needs:
            parts.append(need)
            if need == "prompt":
                parts.append(self.prompt or "")
            elif need == "truth":
                parts += [self.truth.sha256, "resized" if self.image.size != self.truth.size else ""]
            else:
                parts += [self.map.sha256, json.dumps(self.control, sort_keys=True)]
        return key_of(parts)

    def read(self, needs: Iterable[Role]) -> Picture:
        """Decode what is needed; ValueError names the file that cannot be."""
        image = _pixels(self.image)
        truth = _pixels(self.truth) if "truth" in needs else None
        if truth is not None and image.shape != truth.shape:
            size = truth.shape[1::-1]
            image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        shown = _pixels(self.map) if "map" in needs else None
        return Picture(image, truth, shown, self.prompt, self.control)


@dataclass(frozen=True)
class Pictures:
    """What `read_pictures` found. truths: the other side of set metrics, whether or not it pairs.

    lacking: of each role, why pictures cannot be compared so, in one sentence. skipped: corrupt ones.
    """

    cases: tuple[Case, ...]
    truths: tuple[Case, ...] = ()
    lacking: Mapping[Role, str] = field(default_factory=dict)
    skipped: int = 0

    @property
    def stems(self) -> list[str]:
        """Names, in the order of all values."""
        return [case.image.stem for case in self.cases]

    @property
    def resized(self) -> int:
        """How many pictures have another size than their truth."""
        return sum(case.truth is not None and case.image.size != case.truth.size for case in self.cases)

    def warnings(self) -> list[str]:
        """What a reader of distances between the two sides must know, a sentence each."""
        if not self.truths:
            return []
        found = []
        if {case.image.sha256 for case in self.cases} == {case.image.sha256 for case in self.truths}:
            found.append(
                "both sides are the same pictures: every distance says so, and nothing about a model"
            )
        jpegs = [sum(case.image.format == "JPEG" for case in side) for side in (self.cases, self.truths)]
        if min(jpegs) == 0 < max(jpegs):
            side = self.cases if jpegs[0] else self.truths
            words = f"{max(jpegs):,} pictures in {side[0].image.path.parent} are JPEG, none of the other side"
            found.append(f"{words}: compression alone moves FID, KID and their like")
        return found


def _pixels(file: ImageFile) -> np.ndarray:
    return np.ascontiguousarray(HWC3(read_image(file.path)))  # what is transparent shows a white ground
