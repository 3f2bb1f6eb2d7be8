"""Hands and faces by OpenPose's networks, each in a square that the body tells.

Simon et al. 2017, "Hand Keypoint Detection in Single Images using Multiview Bootstrapping"; the network of
faces is alike. All numbers are published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from annotator.networks.tensors import scaled
from annotator.pose import HAND_JOINTS

See = Callable[[np.ndarray], list[np.ndarray]]  # picture uint8 [H W 3] -> outputs, float [h w c] each
Person = Mapping[str, np.ndarray]  # joint -> x, y in pixels and how sure it is
Box = tuple[int, int, int]  # left, top, side

HAND_SIDES = 184, 368, 552, 736  # a hand is seen at four sizes
HAND_MAP, HAND_BLUR, HAND_SEEN = (
    128,
    3.0,
    0.05,
)  # side of the mean heatmap; pixels; the least height of a peak
SMOOTHING = 0.8  # pixels, of the picture of a hand
STRIDE = 8  # pixels for one of the network's
BEYOND_WRIST, HAND_SHARE, UPPER_ARM = 0.33, 1.5, 0.9  # a hand's place and size, in lengths of the arm
HEAD_SHARES = {"eye": 3.0, "ear": 1.5}  # a face reaches as far from the nose, in distances to eyes and ears
FACE_SIDE, FACE_SEEN = 384, 0.05
FACE_DOTS = 70  # the last channel of the network is what is no face
SMALLEST_BOX = 20  # pixels


def hand_box(person: Person, side: str, size: tuple[int, int]) -> Box | None:
    """Where the `left` or `right` hand of `person` is in a picture of `size` (height, width)."""
    names = [f"{side}_{joint}" for joint in ("shoulder", "elbow", "wrist")]
    if any(name not in person for name in names):
        return None
    shoulder, elbow, wrist = (person[name][:2] for name in names)
    lengths = np.linalg.norm(wrist - elbow), UPPER_ARM * np.linalg.norm(elbow - shoulder)
    width = HAND_SHARE * max(lengths)
    return _box(wrist + BEYOND_WRIST * (wrist - elbow) - width / 2, width, size)


def face_box(person: Person, size: tuple[int, int]) -> Box | None:
    """Where the face of `person` is in a picture of `size` (height, width)."""
    if "nose" not in person:
        return None
    nose = person["nose"][:2]
    reaches = [
        share * np.abs(person[name][:2] - nose).max()
        for part, share in HEAD_SHARES.items()
        for name in (f"left_{part}", f"right_{part}")
        if name in person
    ]
    if not reaches:
        return None
    return _box(nose - max(reaches), 2 * max(reaches), size)


def find_hand(see: See, picture: np.ndarray, box: Box) -> np.ndarray:
    """The joints of the hand in the square `box` of `picture`: [21 3] as x, y in pixels and how sure."""
    crop = cv2.GaussianBlur(_crop(picture, box), (0, 0), SMOOTHING)
    mean = np.zeros((HAND_MAP, HAND_MAP, HAND_JOINTS), np.float32)
    for side in HAND_SIDES:
        heat = see(scaled(crop, (side, side)))[0][:, :, :HAND_JOINTS]
        large = scaled(heat, (heat.shape[0] * STRIDE, heat.shape[1] * STRIDE))
        mean += scaled(large, (HAND_MAP, HAND_MAP)) / len(HAND_SIDES)
    joints = np.array([_strongest(mean[:, :, joint]) for joint in range(HAND_JOINTS)])
    return _placed(joints, box, box[2] / HAND_MAP)


def find_face(see: See, picture: np.ndarray, box: Box) -> np.ndarray:
    """The dots of the face in the square `box` of `picture`: [70 3] as x, y in pixels and how sure."""
    heat = see(scaled(_crop(picture, box), (FACE_SIDE, FACE_SIDE)))[-1][:, :, :FACE_DOTS]
    flat = heat.reshape(-1, FACE_DOTS)
    rows, columns = np.unravel_index(flat.argmax(axis=0), heat.shape[:2])
    sure = flat.max(axis=0)
    dots = np.stack([columns, rows, np.where(sure > FACE_SEEN, sure, 0)], axis=1)
    return _placed(dots, box, (box[2] - 1) / (len(heat) - 1))  # corner on corner, as published


def _strongest(heat: np.ndarray) -> tuple[float, float, float]:
    """The peak of the heaviest spot of [h w] as x, y and height; zeros where nothing is seen."""
    smooth = cv2.GaussianBlur(heat, (0, 0), HAND_BLUR, borderType=cv2.BORDER_REFLECT)
    count, spots = cv2.connectedComponents((smooth > HAND_SEEN).astype(np.uint8), connectivity=8)
    if count == 1:
        return 0.0, 0.0, 0.0
    weights = np.bincount(spots.ravel(), heat.ravel())
    inside = np.where(spots == 1 + weights[1:].argmax(), heat, -np.inf)
    row, column = np.unravel_index(inside.argmax(), heat.shape)
    return float(column), float(row), max(float(heat[row, column]), HAND_SEEN)


def _placed(joints: np.ndarray, box: Box, scale: float) -> np.ndarray:
    """Joints [n 3] in a map of `box` as joints in the picture; `scale` is pixels for one of the map."""
    left, top, _ = box
    return joints * (scale, scale, 1) + (left, top, 0)


def _box(corner: np.ndarray, width: float, size: tuple[int, int]) -> Box | None:
    """The square from `corner` (x, y) on that is inside the picture, if it is large enough."""
    left, top = np.maximum(corner, 0)
    width = min(width, size[1] - left, size[0] - top)
    return (int(left), int(top), int(width)) if width >= SMALLEST_BOX else None


def _crop(picture: np.ndarray, box: Box) -> np.ndarray:
    left, top, width = box
    return picture[top : top + width, left : left + width]
