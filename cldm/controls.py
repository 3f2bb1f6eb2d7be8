"""The 14 control types of ControlNet 1.1 as data: which file, which map, which special rule.

A control whose detector is not in this build still runs on a ready-made map (`preprocess=False`). Besides the
14 there are `scribble_xdog`, the scribble model fed with a photograph, and `none`, any map for any model. A
new control is one entry of `CONTROLS`.
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from annotator.registry import ANNOTATORS, Annotate
from annotator.scribble import shrink_lines
from annotator.util import HWC3, check_image, flatten_map, resize_image, target_size
from checkpoints.names.recognize import control_kind, file_stem


def _fit_smooth(control_map: np.ndarray, resolution: int) -> np.ndarray:
    """A map of soft values at the target size, averaged: uint8 [H' W' 3]."""
    return resize_image(HWC3(control_map), resolution)


def _fit_lines(control_map: np.ndarray, resolution: int) -> np.ndarray:
    """A map of thin light lines at the target size, none lost: uint8 [H' W' 3]."""
    lines = HWC3(control_map)
    size = target_size(*lines.shape[:2], resolution)
    height, width = (max(pair) for pair in zip(lines.shape[:2], size, strict=True))
    return shrink_lines(cv2.resize(lines, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), size)


def _fit_classes(control_map: np.ndarray, resolution: int) -> np.ndarray:
    """A map whose colours are names at the target size, no new colours: uint8 [H' W' 3]."""
    classes = HWC3(control_map)
    height, width = target_size(*classes.shape[:2], resolution)
    return cv2.resize(classes, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _image_itself(image: np.ndarray, *, resolution: int) -> np.ndarray:
    return _fit_smooth(image, resolution)


@dataclass(frozen=True)
class Control:
    """One control type. `stem` names the published weights and yaml; None where any model may be used."""

    stem: str | None
    shows: str  # what the map looks like, for messages
    annotate: Annotate | None = None  # None: no detector in this build
    stem_10: str | None = None  # the published ControlNet 1.0 weights of the same kind
    fit: Annotate = _fit_smooth  # (ready-made map, resolution) -> map at the target size
    pool: bool = False  # the model averages the control over all places (global_average_pooling)
    conditional_only: bool = False  # the unconditional pass runs without the hint
    masked_hint: float | None = None  # hint value of pixels to be painted anew; the others are in [0, 1]
    clip_skip: int = 1  # 1 takes the text from the last layer, 2 from the one before


def get_control(name: str) -> Control:
    """The control called `name`; ValueError lists the known ones."""
    if name not in CONTROLS:
        raise ValueError(f"control {name!r} is not known: choose from {', '.join(CONTROLS)}")
    return CONTROLS[name]


def annotate(
    name: str, image: np.ndarray, resolution: int, *, preprocess: bool = True, **params: object
) -> np.ndarray:
    """The map of control `name` for an image or drawing uint8 [H W], [H W 3 or 4]: uint8 [H' W' 3].

    preprocess: False says that `image` is a ready-made map, which is only brought to size. `params` go to the
    detector. ValueError for an unknown control or parameter, or when this build has no such detector.
    """
    control = get_control(name)
    check_image(image)
    if not preprocess:
        if params:
            raise ValueError(f"{', '.join(params)}: a ready-made map (preprocess=False) takes no parameters")
        return control.fit(flatten_map(image), resolution)
    if control.annotate is None:
        words = f"give a ready-made map ({control.shows}) and preprocess=False"
        raise ValueError(f"{name} has no detector in this build: {words}")
    known = [p for p in inspect.signature(control.annotate).parameters if p not in ("image", "resolution")]
    if unknown := [p for p in params if p not in known]:
        words = f"it takes {', '.join(known) or 'none'}"
        raise ValueError(f"{name} has no parameter {', '.join(unknown)}: {words}")
    return control.annotate(image, resolution=resolution, **params)


def control_of_file(path: str | Path) -> str | None:
    """The control that weights of this name were trained for; None where the name does not tell."""
    kind = control_kind(path)
    if kind is None or kind in CONTROLS:
        return kind
    old = (name for name, control in CONTROLS.items() if control.stem_10 == f"{V10}{kind}")
    return next(old, None)


def branch_names(paths: Iterable[str | Path]) -> dict[str, str | Path]:
    """The files by what their branches are called; ValueError where two would be called the same."""
    named: dict[str, str | Path] = {}
    for path in paths:
        if Path(named.setdefault(file_stem(path), path)) != Path(path):
            raise ValueError(f"two branches are called {file_stem(path)!r}: rename one of the files")
    return named


V11, V10 = "control_v11p_sd15_", "control_sd15_"  # how most of the published files begin
SCRIBBLE = "white lines on black, 1 to 24 pixels wide at 512"
CLASSES = "the class colours of ADE20K or COCO"
NORMALS = "surface normals as (n + 1) / 2 in red, green, blue"
SKETCH = Control(f"{V11}scribble", SCRIBBLE, ANNOTATORS["scribble"], f"{V10}scribble", _fit_lines)

CONTROLS: dict[str, Control] = {
    "canny": Control(
        f"{V11}canny", "thin white edges on black", ANNOTATORS["canny"], f"{V10}canny", _fit_lines
    ),
    "mlsd": Control(f"{V11}mlsd", "thin straight white lines on black", None, f"{V10}mlsd", _fit_lines),
    "depth": Control("control_v11f1p_sd15_depth", "grey, near is white", None, f"{V10}depth"),
    "normalbae": Control(f"{V11}normalbae", NORMALS, None, f"{V10}normal"),
    "seg": Control(f"{V11}seg", CLASSES, None, f"{V10}seg", _fit_classes),
    "inpaint": Control(f"{V11}inpaint", "the picture", _image_itself, masked_hint=-1.0),
    "lineart": Control(f"{V11}lineart", "white lines on black", fit=_fit_lines),
    "lineart_anime": Control(
        "control_v11p_sd15s2_lineart_anime", "white lines on black", fit=_fit_lines, clip_skip=2
    ),
    "openpose": Control(f"{V11}openpose", "coloured skeletons on black", None, f"{V10}openpose"),
    "scribble": SKETCH,
    "scribble_xdog": replace(SKETCH, annotate=ANNOTATORS["scribble_xdog"]),
    "softedge": Control(f"{V11}softedge", "soft grey edges on black", None, f"{V10}hed"),
    "shuffle": Control(
        "control_v11e_sd15_shuffle",
        "a colour picture, its parts moved about",
        pool=True,
        conditional_only=True,
    ),
    "ip2p": Control("control_v11e_sd15_ip2p", "the picture", _image_itself),
    "tile": Control("control_v11f1e_sd15_tile", "the picture", _image_itself),
    "none": Control(None, "the map the model was trained on", _image_itself),
}
