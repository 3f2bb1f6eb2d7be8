"""The pictures that a page's fields or an API call hand over: uploaded, drawn, or one of the examples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from app.data_url import decode_data_url
from app.drawing import Pictures
from app.form import DRAWING, EXAMPLE, SOURCES, UPLOAD
from app.uploads import read_upload
from ldm.image import read_image

TEST_IMAGES = Path(__file__).parents[1] / "test_imgs"
EXAMPLES = tuple(sorted(path.stem for path in TEST_IMAGES.glob("*.png")))
HALF_WHITE = 127


@dataclass(frozen=True)
class Given:
    """A picture that goes in. name, digest: for the provenance of what comes out.

    drawing: its data URL, if it was drawn here. shrunk: it was larger when it came.
    """

    image: np.ndarray
    name: str
    digest: str
    drawing: str = ""
    shrunk: bool = False


@dataclass(frozen=True)
class Inputs:
    """All pictures of a request, one for each control."""

    images: tuple[Given, ...]
    init: Given | None = None
    mask: Given | None = None

    @property
    def pictures(self) -> Pictures:
        """What the pipeline takes."""
        init, mask = (None if one is None else one.image for one in (self.init, self.mask))
        return Pictures([one.image for one in self.images], init, mask)

    @property
    def all(self) -> list[Given]:
        """In the order of a provenance: images, init, mask."""
        return [one for one in (*self.images, self.init, self.mask) if one is not None]


def drawn(value: Any, name: str) -> Given | None:
    """The drawing in a canvas' value, None for an empty one; ValueError in one sentence."""
    if value is None or value == "":
        return None
    image = decode_data_url(value, f"the drawing {name}")
    return Given(image, f"{name}.png", hashlib.sha256(value.encode()).hexdigest(), drawing=value)


def uploaded(value: Any, folder: Path) -> Given | None:
    """The picture of an upload, None where there is none; ValueError in one sentence."""
    upload = read_upload(value, folder)
    if upload is None:
        return None
    return Given(upload.image, upload.name, upload.digest, shrunk=upload.shrunk)


def example(name: Any) -> Given:
    """One of the shipped pictures; ValueError lists them."""
    if name not in EXAMPLES:
        raise ValueError(f"there is no example {str(name)[:40]!r}: choose from {', '.join(EXAMPLES)}")
    path = TEST_IMAGES / f"{name}.png"
    return Given(read_image(path), path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def unit_picture(number: int, values: Mapping[str, Any], folder: Path) -> Given | None:
    """The picture of control `number`, counted from 1, by the fields of its unit, None where it has none.

    ValueError in one sentence.
    """
    source = values["source"]
    if source == UPLOAD:
        return uploaded(values["upload"], folder)
    if source == DRAWING:
        return drawn(values["canvas"], f"drawing{number}")
    if source == EXAMPLE:
        return example(values["example"])
    raise ValueError(f"source {str(source)[:40]!r} is not known: choose from {', '.join(SOURCES)}")


def mask_of(given: Given | None) -> Given | None:
    """The picture as a mask, uint8 [H W], white where it is light; None where nothing is."""
    if given is None or not (light := given.image[..., :3].max(axis=2) > HALF_WHITE).any():
        return None
    return replace(given, image=np.where(light, 255, 0).astype(np.uint8))
