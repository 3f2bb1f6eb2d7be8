"""The 14 control types of ControlNet 1.1 as data: which file, which map, which special rule.

A control names its detectors, the default first; `annotator.registry` knows them. Every control also takes a
ready-made map (`preprocess=False`). Besides the 14 there is `none`, any map for any model. A new control is
one entry of `CONTROLS`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from annotator.detector import Annotate
from annotator.registry import detect, ready
from annotator.scribble import shrink_lines
from annotator.util import HWC3, check_image, flatten_map, resize_image, target_size
from checkpoints.names.recognize import control_kind, file_stem

if TYPE_CHECKING:
    import torch


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


@dataclass(frozen=True)
class Control:
    """One control type. `stem` names the published weights and yaml; None where any model may be used."""

    stem: str | None
    shows: str  # what the map looks like, for messages
    detectors: tuple[str, ...]  # names in DETECTORS, the default first
    stem_10: str | None = None  # the published ControlNet 1.0 weights of the same kind
    fit: Annotate = _fit_smooth  # (ready-made map, resolution) -> map at the target size
    pool: bool = False  # the model averages the control over all places (global_average_pooling)
    conditional_only: bool = False  # the unconditional pass runs without the hint
    masked_hint: float | None = None  # hint value of pixels to be painted anew; the others are in [0, 1]
    clip_skip: int = 1  # 1 takes the text from the last layer, 2 from the one before


@dataclass(frozen=True)
class Detection:
    """How a picture becomes the map of a control.

    detector: one of the control's, None for its default. params: of the detector. preprocess: False says that
    the picture is a ready-made map, which is only brought to size.
    """

    detector: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    preprocess: bool = True


@dataclass(frozen=True)
class Annotators:
    """Where detectors find their weights (None: models/annotators), and what networks run on (None: CPU)."""

    folder: Path | None = None
    device: "torch.device | None" = None


AS_USUAL, AT_HOME = Detection(), Annotators()


def get_control(name: str) -> Control:
    """The control called `name`; ValueError lists the known ones."""
    if control := CONTROLS.get(name) or STORED_CONTROLS.get(name):
        return control
    raise ValueError(f"control {name!r} is not known: choose from {', '.join(CONTROLS)}")


def pick_detector(name: str, detector: str | None = None) -> str:
    """The detector that control `name` uses where `detector` is asked for; ValueError lists its own."""
    own = get_control(name).detectors
    if not own:
        raise ValueError(f"{name} has no detector here: give a ready-made map ({get_control(name).shows})")
    if detector is not None and detector not in own:
        raise ValueError(f"{name} has no detector {detector!r}: choose from {', '.join(own)}")
    return detector or own[0]


def ready_detectors(name: str, folder: Path | None = None) -> list[str]:
    """The detectors of control `name` that can be used as things are, its default first if that is one."""
    return [one for one in get_control(name).detectors if ready(one, folder) is None]


def annotate(
    name: str, image: np.ndarray, resolution: int, how: Detection = AS_USUAL,
    annotators: Annotators = AT_HOME,
) -> np.ndarray:  # fmt: skip
    """The map of control `name` for an image or drawing uint8 [H W], [H W 3 or 4]: uint8 [H' W' 3].

    ValueError for an unknown control, detector or parameter, and for a detector that is not ready.
    """
    control = get_control(name)
    check_image(image)
    if not how.preprocess:
        if how.params or how.detector:
            given = ", ".join([*([how.detector] if how.detector else []), *how.params])
            raise ValueError(f"{given}: a ready-made map (preprocess=False) takes no detector or parameters")
        return control.fit(flatten_map(image), resolution)
    detector = pick_detector(name, how.detector)
    check_ready(name, detector, annotators.folder)
    places = {"folder": annotators.folder, "device": annotators.device}
    return detect(detector, image, resolution=resolution, **places, **how.params)


def check_ready(name: str, detector: str, folder: Path | None = None) -> None:
    """ValueError unless `detector` is ready: what makes it so, and what control `name` has instead."""
    if cure := ready(detector, folder):
        others = ", ".join(ready_detectors(name, folder)) or "none"
        map_words = f"or give a ready-made map ({get_control(name).shows})"
        raise ValueError(f"{cure}; ready for {name}: {others}; {map_words}")


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
LINES = "white lines on black"
STRAIGHT = "thin straight white lines on black"
MOVED = "a colour picture, its parts moved about"
ITSELF, INKED = ("picture",), ("lineart_standard", "invert")
DRAWN, ANIME = (*INKED, "lineart", "lineart_coarse"), (*INKED, "lineart_anime")
STROKES = "drawing", "xdog", "scribble_hed", "scribble_pidinet"
EDGES = "hed", "hed_safe", "pidinet", "pidinet_safe"
DEPTHS = "depth_anything_v2", "dpt", "zoe"
SEGMENTERS = "oneformer_ade20k", "oneformer_coco", "upernet_ade20k", "segformer"
SKELETONS = "pose_json", "vitpose", "openpose", "openpose_hand", "openpose_face", "openpose_full"
SKETCH = Control(f"{V11}scribble", SCRIBBLE, STROKES, f"{V10}scribble", _fit_lines)

CONTROLS: dict[str, Control] = {
    "canny": Control(f"{V11}canny", "thin white edges on black", ("canny",), f"{V10}canny", _fit_lines),
    "mlsd": Control(f"{V11}mlsd", STRAIGHT, ("lsd", "mlsd"), f"{V10}mlsd", _fit_lines),
    "depth": Control("control_v11f1p_sd15_depth", "grey, near is white", DEPTHS, f"{V10}depth"),
    "normalbae": Control(f"{V11}normalbae", NORMALS, ("bae", "from_depth"), f"{V10}normal"),
    "seg": Control(f"{V11}seg", CLASSES, SEGMENTERS, f"{V10}seg", _fit_classes),
    "inpaint": Control(f"{V11}inpaint", "the picture", ITSELF, masked_hint=-1.0),
    "lineart": Control(f"{V11}lineart", LINES, DRAWN, fit=_fit_lines),
    "lineart_anime": Control("control_v11p_sd15s2_lineart_anime", LINES, ANIME, fit=_fit_lines, clip_skip=2),
    "openpose": Control(f"{V11}openpose", "coloured skeletons on black", SKELETONS, f"{V10}openpose"),
    "scribble": SKETCH,
    "softedge": Control(f"{V11}softedge", "soft grey edges on black", EDGES, f"{V10}hed"),
    "shuffle": Control("control_v11e_sd15_shuffle", MOVED, ("shuffle",), pool=True, conditional_only=True),
    "ip2p": Control("control_v11e_sd15_ip2p", "the picture", ITSELF),
    "tile": Control("control_v11f1e_sd15_tile", "the picture", ("tile",)),
    "none": Control(None, "the map the model was trained on", ITSELF),
}
# What requests of earlier versions say: the scribble model fed with a photograph.
STORED_CONTROLS = {"scribble_xdog": replace(SKETCH, detectors=("xdog",))}
