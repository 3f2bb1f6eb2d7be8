"""People as joints, and the picture of them that openpose models were trained on.

Every source of joints (a file, any network) makes `Pose` and is drawn here: limbs as ellipses in 0.6 of their
colour, joints as discs in the full one, fingers in the hues of a circle, the face as white dots. A pose is in
parts of the picture, so that it can be drawn at any size.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

# The published order of the 18 joints.
BODY = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
HAND_JOINTS = 21  # the wrist, then four of each finger from the thumb on
FINGERS = tuple((0 if joint % 4 == 1 else joint - 1, joint) for joint in range(1, HAND_JOINTS))
LIMB_SHADE = 0.6  # of the colour: joints stand out from limbs
LIMB_HALF_WIDTH, JOINT_RADIUS, FINGER_WIDTH, FACE_RADIUS = 4, 4, 2, 3  # pixels at 512, as published
TRAINED_SIDE = 512
FINGERTIP = (0, 0, 255)
SEEN = 0.3  # confidence from which a joint is drawn, where its source says one


@dataclass(frozen=True)
class Pose:
    """One person. Each array is float [n 3]: x and y as parts of width and height, and the confidence.

    body: [18 3] in the order of `BODY`. left_hand, right_hand: [21 3], or None where there is none. face:
    dots [n 3], 68 or 70 of them as published. A joint that was not found has the confidence 0.
    """

    body: np.ndarray
    left_hand: np.ndarray | None = None
    right_hand: np.ndarray | None = None
    face: np.ndarray | None = None


def draw_poses(poses: Iterable[Pose], size: tuple[int, int], *, seen: float = SEEN) -> np.ndarray:
    """All `poses` on black, RGB uint8 [H W 3] of `size` (height, width).

    seen: joints with less confidence are left out, and the limbs that end in them.
    """
    canvas = np.zeros((*size, 3), np.uint8)
    scale = min(size) / TRAINED_SIDE
    everyone = list(poses)
    for pose in everyone:
        _draw_body(canvas, _pixels(pose.body, size, seen), scale)
    for pose in everyone:
        for hand in (pose.left_hand, pose.right_hand):
            if hand is not None:
                _draw_hand(canvas, _pixels(hand, size, seen), scale)
        if pose.face is not None:
            for dot in _pixels(pose.face, size, seen):
                _disc(canvas, dot, FACE_RADIUS * scale, (255, 255, 255))
    return canvas


def body_from_coco(joints: np.ndarray) -> np.ndarray:
    """The 18 joints of `BODY` from COCO's 17, float [17 3]; the neck lies between the shoulders."""
    left, right = joints[5], joints[6]
    neck = np.append((left[:2] + right[:2]) / 2, min(left[2], right[2]))
    order = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
    return np.stack([neck if index is None else joints[index] for index in order])


def _pixels(joints: np.ndarray, size: tuple[int, int], seen: float) -> list[tuple[float, float] | None]:
    """Column and row of each joint, None where it was not seen."""
    height, width = size
    return [(x * width, y * height) if confidence >= max(seen, 1e-6) else None for x, y, confidence in joints]


def _draw_body(canvas: np.ndarray, joints: list[tuple[float, float] | None], scale: float) -> None:
    colours = [_hue(index / len(BODY)) for index in range(len(BODY))]
    for (start, end), colour in zip(LIMBS, colours, strict=False):
        if joints[start] and joints[end]:
            shade = tuple(int(value * LIMB_SHADE) for value in colour)
            _limb(canvas, joints[start], joints[end], max(1.0, LIMB_HALF_WIDTH * scale), shade)
    for joint, colour in zip(joints, colours, strict=True):
        _disc(canvas, joint, JOINT_RADIUS * scale, colour)


def _draw_hand(canvas: np.ndarray, joints: list[tuple[float, float] | None], scale: float) -> None:
    for number, (start, end) in enumerate(FINGERS):
        if joints[start] and joints[end]:
            ends = (tuple(map(int, joints[one])) for one in (start, end))
            cv2.line(canvas, *ends, _hue(number / len(FINGERS)), max(1, round(FINGER_WIDTH * scale)))
    for joint in joints:
        _disc(canvas, joint, JOINT_RADIUS * scale, FINGERTIP)


def _limb(
    canvas: np.ndarray, start: tuple[float, float], end: tuple[float, float], half_width: float,
    colour: tuple[int, ...],
) -> None:  # fmt: skip
    """An ellipse whose long axis is the limb."""
    (x0, y0), (x1, y1) = start, end
    middle, axes = (int((x0 + x1) / 2), int((y0 + y1) / 2)), (math.hypot(x1 - x0, y1 - y0) / 2, half_width)
    angle = int(math.degrees(math.atan2(y1 - y0, x1 - x0)))
    outline = cv2.ellipse2Poly(middle, tuple(int(axis) for axis in axes), angle, 0, 360, 1)
    cv2.fillConvexPoly(canvas, outline, colour)


def _disc(
    canvas: np.ndarray, middle: tuple[float, float] | None, radius: float, colour: tuple[int, ...]
) -> None:
    if middle:
        cv2.circle(canvas, tuple(map(int, middle)), max(1, round(radius)), colour, cv2.FILLED)


def _hue(turn: float) -> tuple[int, int, int]:
    return tuple(round(255 * value) for value in colorsys.hsv_to_rgb(turn, 1, 1))
