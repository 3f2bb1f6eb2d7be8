"""The detectors of this build by name, and the one function through which all of them are called.

`detect` takes an image uint8 [H W], [H W 3] or [H W 4] at its own size and gives a map uint8 [H' W' 3] with
the sides of `annotator.util.target_size`: white on black where it shows lines, near as white where it shows
depth. Nothing is ever fetched here. A new detector is one module and one entry of `DETECTORS`.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annotator import canny, picture, scribble
from annotator.detector import Annotate, Detector
from annotator.util import check_image

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).parents[1] / "models" / "annotators"
LOADED = 4  # networks kept: those of one request; together they stay below 2 GB


def detect(
    name: str, image: np.ndarray, *, resolution: int, folder: Path | None = None,
    device: torch.device | None = None, **params: Any,
) -> np.ndarray:  # fmt: skip
    """The map that detector `name` makes of `image`: uint8 [H' W' 3].

    folder: of the weights, None is models/annotators. device: of networks, None is the CPU. ValueError in one
    sentence for an unknown detector or parameter, one out of range, an image that is none, or a detector that
    is not `ready`.
    """
    detector, folder = get_detector(name), Path(folder or FOLDER)
    image, params = check_image(image), detector.checked(name, params)
    if cure := ready(name, folder):
        raise ValueError(cure)
    if detector.annotate:
        return detector.annotate(image, resolution=resolution, **params)
    import torch

    with torch.inference_mode():
        annotate = _loaded(name, folder.absolute(), str(device or "cpu"))
        return annotate(image, resolution=resolution, **params)


def ready(name: str, folder: Path | None = None) -> str | None:
    """None where detector `name` can be used, else one sentence that says what makes it so."""
    detector, folder = get_detector(name), Path(folder or FOLDER)
    if missing := [module for module in detector.modules if find_spec(module) is None]:
        return f'{name} needs the package {" and ".join(missing)}: pip install -e ".[annotators]"'
    lacking = [one for one in detector.weights if not (folder / one).exists()]
    if lacking and not (detector.instead and all((folder / one).exists() for one in detector.instead)):
        command = f"python tool_download_models.py get {detector.get}"
        return f"{name} needs {' and '.join(lacking)} in {_shown(folder)}: {command}"
    return None


def get_detector(name: str) -> Detector:
    """The detector called `name`; ValueError lists the known ones."""
    if name not in DETECTORS:
        raise ValueError(f"detector {name!r} is not known: choose from {', '.join(DETECTORS)}")
    return DETECTORS[name]


def forget() -> None:
    """Drop the networks that are kept, so that their memory is free again."""
    _loaded.cache_clear()


@lru_cache(maxsize=LOADED)
def _loaded(name: str, folder: Path, device: str) -> Annotate:
    import torch

    return DETECTORS[name].load(folder, torch.device(device))


def _shown(folder: Path) -> str:
    return "models/annotators" if folder == FOLDER else folder.as_posix()


PICTURE, EDGES = "the picture", "thin white edges on black"
STROKES = "white lines on black, 1 to 24 pixels wide at 512"

DETECTORS: dict[str, Detector] = {
    "picture": Detector(PICTURE, picture.annotate),
    "tile": Detector(PICTURE, picture.annotate_tile, params=picture.PARAMS),
    "canny": Detector(EDGES, canny.annotate, params=canny.PARAMS),
    "drawing": Detector(STROKES, scribble.annotate, params=scribble.DRAWING_PARAMS),
    "xdog": Detector(STROKES, scribble.annotate_xdog, params=scribble.XDOG_PARAMS),
}
