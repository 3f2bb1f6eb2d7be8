"""Pictures that were made, as files for whoever asked: PNGs that carry their request and its drawings.

Each set lies in a folder of its own, whose name nobody can guess; Gradio deletes what is older than an hour.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from app.comparing import Compared, difference
from app.detecting import Annotated
from app.drawing import Drawn
from app.inputs import Inputs
from app.provenance import Provenance, write_image
from ldm.image import write_png

DRAWINGS = "drawings"  # PNG text: what was drawn on a canvas, data URLs by the name of the picture
SHOWN_SIDE = 512  # pixels
MAX_STEM = 60  # characters of a file's name
MAX_DRAWINGS = 2**20  # characters; beyond, a picture would be mostly its drawing


class Album:
    """The files of one request: maps first, then pictures, as they are finished."""

    def __init__(self, folder: Path, inputs: Inputs) -> None:
        self._folder, self._inputs = folder / secrets.token_hex(16), inputs
        self._stem = "+".join(dict.fromkeys(Path(one.name).stem for one in inputs.images))[:MAX_STEM]
        drawings = json.dumps({one.name: one.drawing for one in inputs.all if one.drawing})
        self._more = {DRAWINGS: drawings} if len(drawings) <= MAX_DRAWINGS else {}
        self._maps, self._images = list[Path](), list[Path]()

    def update(self, drawn: Drawn) -> list[tuple[str, str]]:
        """All files so far, with captions; what is new in `drawn` is written. OSError as `write_png`."""
        for number, control_map in enumerate(drawn.maps[len(self._maps) :], len(self._maps) + 1):
            self._maps.append(write_png(self._folder / f"{self._stem}_map{number}.png", control_map))
        pairs = list(zip(drawn.images, drawn.requests, strict=False))
        for image, request in pairs[len(self._images) :]:
            path = self._folder / f"{self._stem}_seed{request.seed}.png"
            source = provenance_of(self._inputs, drawn.provenance)
            self._images.append(write_image(path, image, request, source, self._more))
        maps = [(path.as_posix(), f"map {number}") for number, path in enumerate(self._maps, 1)]
        return maps + [(path.as_posix(), path.stem.rpartition("_seed")[2]) for path in self._images]


def provenance_of(inputs: Inputs, model: Provenance) -> Provenance:
    """Where a picture comes from: its model's provenance, and the names of what went in."""
    return replace(
        model,
        image=tuple(one.name for one in inputs.images),
        init=inputs.init and inputs.init.name,
        mask=inputs.mask and inputs.mask.name,
        digests={one.name: one.digest for one in inputs.all},
    )


def files_of_maps(folder: Path, found: Annotated) -> list[str]:
    """The maps of detectors as PNG files, each called after its detector. OSError as `write_png`."""
    place = folder / secrets.token_hex(16)
    return [write_png(place / f"{one.detector}.png", one.map).as_posix() for one in found.maps]


def write_compared(folder: Path, inputs: Inputs, made: Sequence[Compared]) -> list[str]:
    """The pictures of a comparison as PNG files that carry their requests. OSError as `write_png`."""
    place = folder / secrets.token_hex(16)
    return [
        write_image(
            place / f"{number}_{one.model}.png", one.image, one.request,
            provenance_of(inputs, one.provenance),
        ).as_posix()
        for number, one in enumerate(made, 1)
    ]  # fmt: skip


def write_difference(folder: Path, image: np.ndarray, other: np.ndarray) -> str:
    """Where two pictures differ, as a PNG file. OSError as `write_png`."""
    gap = difference(image, other)
    times = max(1, SHOWN_SIDE // max(gap.shape[:2]))  # pages do not enlarge small pictures
    gap = gap.repeat(times, axis=0).repeat(times, axis=1)
    return write_png(folder / secrets.token_hex(16) / "difference.png", gap).as_posix()
