"""Does a picture show the control map it was made from? The detector that made the map looks at the picture.

What is compared follows from what the map shows, by the measures of ControlNet++ (Li et al. 2024): F1 of
lines, SSIM of soft ones, RMSE of depth, mean IoU of classes. Lines move by a pixel or two in the best of
pictures, so there is an F1 with that tolerance as well. All are of single pictures, then averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from annotator.registry import DETECTORS, detect, ready
from annotator.util import HWC3
from eval.metrics.likeness import ssim
from eval.metrics.metric import Compute, Feature, Picture, PictureMetric, Tools

Kind = Literal["lines", "soft", "depth", "classes"]

TOLERANCE = 2  # pixels
WHITE = 127  # levels above it are a line
COLUMNS = ("f1", "f1_2px", "ssim", "rmse", "miou")


@dataclass(frozen=True)
class Measure:
    """How the maps of a control or detector are compared; reader: the detector that looks at pictures."""

    kind: Kind
    reader: str


def f1(found: np.ndarray, asked: np.ndarray, near: float = 0) -> float:
    """Of two sets of pixels, bool [H W], each counted where it lies within `near` pixels of the other.

    The harmonic mean of precision (of what was found) and recall (of what was asked); 1 where both are empty.
    """
    if not found.any() and not asked.any():
        return 1.0
    precision, recall = _share_near(found, asked, near), _share_near(asked, found, near)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def mean_iou(found: np.ndarray, asked: np.ndarray) -> float:
    """Intersection over union of class colours, uint8 [H W 3], averaged over the classes of either map."""
    first, second = (one.astype(np.int32) @ (1 << 16, 1 << 8, 1) for one in (found, asked))
    ious = []
    for colour in np.union1d(first, second):
        both, either = (first == colour) & (second == colour), (first == colour) | (second == colour)
        ious.append(np.count_nonzero(both) / np.count_nonzero(either))
    return float(np.mean(ious))


def rmse(found: np.ndarray, asked: np.ndarray) -> float:
    """Root of the mean squared difference of two maps, 0 to 255."""
    return float(np.sqrt(np.square(found.astype(np.float64) - asked).mean()))


def compare(kind: Kind, found: np.ndarray, asked: np.ndarray) -> dict[str, float]:
    """The values of a kind by COLUMNS, of two maps uint8 [H W 3] of one size."""
    if kind == "lines":
        lines = found.max(axis=2) > WHITE, asked.max(axis=2) > WHITE
        return {"f1": f1(*lines), "f1_2px": f1(*lines, near=TOLERANCE)}
    if kind == "soft":
        return {"ssim": float(ssim([found], [asked])[0])}
    return {"rmse": rmse(found, asked)} if kind == "depth" else {"miou": mean_iou(found, asked)}


def unreadable(controls: Iterable[tuple[str, Mapping[str, Any]] | None]) -> str | None:
    """Why pictures of these controls cannot be measured, in one line; None where they can."""
    for name in dict.fromkeys(control and control[0] for control in controls):
        if name is None:
            return "the pictures do not say which control they follow: give --control NAME"
        if name not in MEASURES:
            return f"there is no measure for maps of {name}: known are {', '.join(MEASURES)}"
        reader = MEASURES[name].reader
        if reader not in DETECTORS:
            return f"the detector {reader} is not in this build"
        if cure := ready(reader):
            return cure
    return None


def open_control(tools: Tools) -> Compute:
    """The function that gives COLUMNS a picture, NaN where a column is not of its control."""
    from ldm.util import pick_device

    device = pick_device(tools.device)

    def values(picture: Picture) -> list[float]:
        name, params = picture.control
        measure, resolution = MEASURES[name], min(picture.map.shape[:2])
        own = params if measure.reader == name else {}
        found = HWC3(detect(measure.reader, picture.image, resolution=resolution, device=device, **own))
        if found.shape != picture.map.shape:
            sizes = " and ".join(f"{m.shape[1]}x{m.shape[0]}" for m in (found, picture.map))
            raise ValueError(f"the detector's map and the given one are {sizes}: sides of 64, 128, 192 … fit")
        measured = compare(measure.kind, found, picture.map)
        return [measured.get(column, math.nan) for column in COLUMNS]

    def compute(pictures: Sequence[Picture]) -> np.ndarray:
        return np.array([values(picture) for picture in pictures])

    return compute


def _share_near(points: np.ndarray, others: np.ndarray, near: float) -> float:
    if not points.any() or not others.any():
        return 0.0
    distance = cv2.distanceTransform((~others).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float((distance[points] <= near).mean())


def _measures(kind: Kind, *names: str, **readers: str) -> dict[str, Measure]:
    own = {name: Measure(kind, name) for name in names}
    return own | {name: Measure(kind, reader) for name, reader in readers.items()}


# By the detector that made the map, or by its control where a request names no detector. Detectors that only
# read drawings cannot look at pictures: there Canny does.
MEASURES: dict[str, Measure] = {
    **_measures(
        "lines", "canny", "lsd", "mlsd", "lineart_standard", "xdog", "scribble_hed", "scribble_pidinet"
    ),
    **_measures("lines", drawing="canny", scribble="canny", scribble_xdog="xdog", invert="lineart_standard"),
    **_measures("soft", "hed", "hed_safe", "pidinet", "pidinet_safe", softedge="hed"),
    **_measures("soft", "lineart", "lineart_coarse", "lineart_anime"),
    **_measures("depth", "depth_anything_v2", "dpt", "zoe", depth="depth_anything_v2"),
    **_measures("classes", "oneformer_ade20k", "oneformer_coco", "upernet_ade20k", "segformer"),
    **_measures("classes", seg="oneformer_ade20k"),
}
CONTROL = Feature("control", len(COLUMNS), open_control, ("map",), usable=unreadable)
CONTROL_F1 = PictureMetric("F1 of the map's lines", "", "higher", CONTROL, column=COLUMNS.index("f1"))
CONTROL_F1_2PX = PictureMetric(
    f"F1 of the map's lines within {TOLERANCE} px", "", "higher", CONTROL, column=COLUMNS.index("f1_2px")
)
CONTROL_SSIM = PictureMetric("SSIM of the map", "", "higher", CONTROL, column=COLUMNS.index("ssim"))
CONTROL_RMSE = PictureMetric("RMSE of the map", "/255", "lower", CONTROL, column=COLUMNS.index("rmse"))
CONTROL_MIOU = PictureMetric("IoU of the map's classes", "", "higher", CONTROL, column=COLUMNS.index("miou"))
