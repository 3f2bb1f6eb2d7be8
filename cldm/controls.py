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
from annotator.util import HWC3, check_image, resize_image, target_size
from checkpoints.names.recognize import control_kind, file_stem


def fit_smooth(control_map: np.ndarray, resolution: int) -> np.ndarray:
    """A map of soft values at the target size, averaged: uint8 [H' W' 3]."""
    return resize_image(HWC3(control_map), resolution)


def fit_lines(control_map: np.ndarray, resolution: int) -> np.ndarray:
    """A map of thin light lines at the target size, none lost: uint8 [H' W' 3]."""
    lines = HWC3(control_map)
    size = target_size(*lines.shape[:2], resolution)
    height, width = (max(pair) for pair in zip(lines.shape[:2], size, strict=True))
    return shrink_lines(cv2.resize(lines, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), size)


def fit_classes(control_map: np.ndarray, resolution: int) -> np.ndarray:
    """A map whose colours are names at the target size, no new colours: uint8 [H' W' 3]."""
    classes = HWC3(control_map)
    height, width = target_size(*classes.shape[:2], resolution)
    return cv2.resize(classes, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def image_itself(image: np.ndarray, *, resolution: int) -> np.ndarray:
    """The annotator of controls whose map is the image: uint8 [H' W' 3]."""
    return fit_smooth(image, resolution)


@dataclass(frozen=True)
class Control:
    """One control type. `stem` names the published weights and yaml; None where any model may be used."""

    stem: str | None
    shows: str  # what the map looks like, for messages
    annotate: Annotate | None = None  # None: no detector in this build
    stem_10: str | None = None  # the published ControlNet 1.0 weights of the same kind
    fit: Annotate = fit_smooth  # (ready-made map, resolution) -> map at the target size
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
        return control.fit(image, resolution)
    if control.annotate is None:
        raise ValueError(
            f"{name} has no detector in this build: "
            f"give a ready-made map ({control.shows}) and preprocess=False"
        )
    known = [p for p in inspect.signature(control.annotate).parameters if p not in ("image", "resolution")]
    if unknown := [p for p in params if p not in known]:
        raise ValueError(
            f"{name} has no parameter {', '.join(unknown)}: it takes {', '.join(known) or 'none'}"
        )
    return control.annotate(image, resolution=resolution, **params)


def control_of_file(path: str | Path) -> str | None:
    """The control that weights of this name were trained for; None where the name does not tell."""
    kind = control_kind(path)
    if kind is None or kind in CONTROLS:
        return kind
    old = (name for name, control in CONTROLS.items() if control.stem_10 == f"control_sd15_{kind}")
    return next(old, None)


def branch_names(paths: Iterable[str | Path]) -> dict[str, str | Path]:
    """The files by what their branches are called; ValueError where two would be called the same."""
    named: dict[str, str | Path] = {}
    for path in paths:
        if Path(named.setdefault(file_stem(path), path)) != Path(path):
            raise ValueError(f"two branches are called {file_stem(path)!r}: rename one of the files")
    return named


_SCRIBBLE = Control(
    "control_v11p_sd15_scribble",
    "white lines on black, 1 to 24 pixels wide at 512",
    ANNOTATORS["scribble"],
    "control_sd15_scribble",
    fit_lines,
)

CONTROLS: dict[str, Control] = {
    "canny": Control(
        "control_v11p_sd15_canny",
        "thin white edges on black",
        ANNOTATORS["canny"],
        "control_sd15_canny",
        fit_lines,
    ),
    "mlsd": Control(
        "control_v11p_sd15_mlsd",
        "thin straight white lines on black",
        stem_10="control_sd15_mlsd",
        fit=fit_lines,
    ),
    "depth": Control("control_v11f1p_sd15_depth", "grey, near is white", stem_10="control_sd15_depth"),
    "normalbae": Control(
        "control_v11p_sd15_normalbae",
        "surface normals as (n + 1) / 2 in red, green, blue",
        stem_10="control_sd15_normal",
    ),
    "seg": Control(
        "control_v11p_sd15_seg",
        "the class colours of ADE20K or COCO",
        stem_10="control_sd15_seg",
        fit=fit_classes,
    ),
    "inpaint": Control("control_v11p_sd15_inpaint", "the picture", image_itself, masked_hint=-1.0),
    "lineart": Control("control_v11p_sd15_lineart", "white lines on black", fit=fit_lines),
    "lineart_anime": Control(
        "control_v11p_sd15s2_lineart_anime", "white lines on black", fit=fit_lines, clip_skip=2
    ),
    "openpose": Control(
        "control_v11p_sd15_openpose", "coloured skeletons on black", stem_10="control_sd15_openpose"
    ),
    "scribble": _SCRIBBLE,
    "scribble_xdog": replace(_SCRIBBLE, annotate=ANNOTATORS["scribble_xdog"]),
    "softedge": Control("control_v11p_sd15_softedge", "soft grey edges on black", stem_10="control_sd15_hed"),
    "shuffle": Control(
        "control_v11e_sd15_shuffle",
        "a colour picture, its parts moved about",
        pool=True,
        conditional_only=True,
    ),
    "ip2p": Control("control_v11e_sd15_ip2p", "the picture", image_itself),
    "tile": Control("control_v11f1e_sd15_tile", "the picture", image_itself),
    "none": Control(None, "the map the model was trained on", image_itself),
}
