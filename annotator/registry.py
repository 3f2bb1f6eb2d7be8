"""The detectors of this build by name, and the one function through which all of them are called.

`detect` takes an image uint8 [H W], [H W 3] or [H W 4] at its own size and gives a map uint8 [H' W' 3] with
the sides of `annotator.util.target_size`: white on black where it shows lines, near as white where it shows
depth. Nothing is ever fetched here. A new detector is one module and one entry of `DETECTORS`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annotator import canny, hed, lsd, picture, pose_json, scribble, shuffle, strokes
from annotator.detector import Annotate, Detector, Load
from annotator.networks.table import NETWORKS
from annotator.util import check_image
from annotator.weights import WrongWeights

if TYPE_CHECKING:
    import torch

LOADED = 4  # networks kept, the last used ones: as many as a request has controls, and not all that there are


def detect(
    name: str, image: np.ndarray, *, resolution: int, folder: Path | None = None,
    device: torch.device | None = None, **params: Any,
) -> np.ndarray:  # fmt: skip
    """The map that detector `name` makes of `image`: uint8 [H' W' 3].

    folder: of the weights, None is models/annotators. device: of networks, None is the CPU. ValueError in one
    sentence for an unknown detector or parameter, one out of range, an image that is none, or a detector that
    is not `ready`.
    """
    detector = get_detector(name)
    image, params = check_image(image), detector.checked(name, params)
    folder = detector.find(name, folder)
    if detector.annotate:
        return detector.annotate(image, resolution=resolution, **params)
    import torch

    with torch.inference_mode():
        try:
            annotate = _loaded(detector.load, folder.absolute(), str(device or "cpu"))
        except WrongWeights as error:
            raise ValueError(f"{error} with {detector.command}") from error
        return annotate(image, resolution=resolution, **detector.preset, **params)


def ready(name: str, folder: str | Path | None = None) -> str | None:
    """None where detector `name` can be used, else one sentence that says what makes it so."""
    return get_detector(name).lacks(name, folder)


def get_detector(name: str) -> Detector:
    """The detector called `name`; ValueError lists the known ones."""
    if name not in DETECTORS:
        raise ValueError(f"detector {name!r} is not known: choose from {', '.join(DETECTORS)}")
    return DETECTORS[name]


def files_of(name: str, folder: str | Path | None = None) -> list[Path]:
    """The files or folders of detector `name` that are there; ValueError says how to get them."""
    detector = get_detector(name)
    found = detector.find(name, folder)
    whole = all((found / one).exists() for one in detector.weights)
    return [found / one for one in (detector.weights if whole else detector.instead)]


def forget() -> None:
    """Drop the networks that are kept, so that their memory is free again."""
    _loaded.cache_clear()


@lru_cache(maxsize=LOADED)
def _loaded(load: Load, folder: Path, device: str) -> Annotate:
    import torch

    return load(folder, torch.device(device))


PICTURE, EDGES = "the picture", "thin white edges on black"
LINES, SKELETONS = "white lines on black, soft", "coloured skeletons on black"
STROKES = "white lines on black, 1 to 24 pixels wide at 512"
DETECTORS: dict[str, Detector] = {
    "picture": Detector(PICTURE, picture.annotate),
    "tile": Detector(PICTURE, picture.annotate_tile, params=picture.PARAMS),
    "canny": Detector(EDGES, canny.annotate, params=canny.PARAMS),
    "drawing": Detector(STROKES, scribble.annotate, params=scribble.DRAWING_PARAMS),
    "xdog": Detector(STROKES, scribble.annotate_xdog, params=scribble.XDOG_PARAMS),
    "lsd": Detector("straight white lines on black", lsd.annotate, params=lsd.PARAMS),
    "lineart_standard": Detector(LINES, strokes.annotate_standard, params=strokes.STANDARD_PARAMS),
    "invert": Detector(LINES, strokes.annotate_negative),
    "shuffle": Detector("the picture, its parts moved about", shuffle.annotate, params=shuffle.PARAMS),
    "pose_json": Detector(SKELETONS, pose_json.annotate, params=pose_json.PARAMS),
    "hed": hed.SOFT,
    "hed_safe": replace(hed.SOFT, preset={"style": "safe"}),
    "scribble_hed": replace(hed.SOFT, shows=STROKES, preset={"style": "scribble"}),
    **NETWORKS,
}
