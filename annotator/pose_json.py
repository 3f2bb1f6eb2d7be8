"""Joints from JSON: OpenPose's 18 or 25 points with hands and face, or COCO's 17.

OpenPose: {"people": [{"pose_keypoints_2d": [x, y, confidence, ...], "hand_left_keypoints_2d": ...}]}, also as
a list of one such picture. COCO: annotations with "keypoints": [x, y, visibility, ...], alone, in a list, or
under "annotations". Coordinates are pixels of `canvas_width` and `canvas_height` (COCO: of "images"), of the
picture where neither is said, or parts of it where none passes 1.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from annotator.detector import Param
from annotator.pose import BODY, HAND_JOINTS, Pose, body_from_coco, draw_poses
from annotator.util import HWC3, check_image, target_size

POINTS = Param("", help="the joints as JSON: OpenPose's 18 or 25 points, or COCO's 17")
SEEN = Param(0.1, 0, 1, 0.05, "joints of less confidence are left out")
PARAMS = {"points": POINTS, "seen": SEEN}
COCO_JOINTS = 17
# OpenPose's 25 have the middle of the hips and six of the feet besides.
BODY_25 = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
FAR = 3  # sizes of the picture: what lies beyond was measured in another one
MAX_FACE = 200  # dots


def annotate(
    image: np.ndarray, *, resolution: int, points: str = POINTS.default, seen: float = SEEN.default
) -> np.ndarray:
    """The people of `points` as coloured skeletons on black: uint8 [H' W' 3]. ValueError as `read_poses`."""
    height, width = check_image(image).shape[:2]
    poses = read_poses(points, (height, width))
    return HWC3(draw_poses(poses, target_size(height, width, resolution), seen=seen))


def read_poses(text: str, size: tuple[int, int]) -> list[Pose]:
    """The people of JSON `text`. size: height and width of the picture that it belongs to.

    ValueError in one sentence where it is no JSON, or none of these forms.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        got = "nothing" if not text.strip() else repr(text.strip()[:20])
        raise ValueError(f"points must be {POINTS.help.removeprefix('the joints as ')}, got {got}") from None
    if isinstance(data, list) and len(data) == 1 and isinstance(data[0], dict) and "people" in data[0]:
        (data,) = data
    size = _canvas(data, size)
    people = [_person(one) for one in _people(data)]
    parts = [part for person in people for part in person.values()]
    pixels = max((part[:, :2].max(initial=0) for part in parts), default=0) > 1
    scale = np.array([size[1], size[0], 1]) if pixels else np.ones(3)
    return [Pose(**{name: _checked(part / scale) for name, part in person.items()}) for person in people]


def _people(data: Any) -> list[Any]:
    if isinstance(data, dict):
        for key in ("people", "annotations"):
            if key in data:
                data = data[key]
                break
    people = [data] if isinstance(data, dict) else data
    if not isinstance(people, list) or not all(isinstance(one, dict) for one in people):
        raise ValueError('points must hold a list of people: {"people": [...]} or COCO\'s annotations')
    return people


def _canvas(data: Any, size: tuple[int, int]) -> tuple[float, float]:
    """Height and width that the coordinates are measured in."""
    if not isinstance(data, dict):
        return size
    names, holder = ("canvas_height", "canvas_width"), data
    images = data.get("images")
    if isinstance(images, list) and images and isinstance(images[0], dict):
        names, holder = ("height", "width"), images[0]
    said = tuple(holder.get(name) for name in names)
    if said == (None, None):
        return size
    if not all(isinstance(side, int | float) and 1 <= side < 1e6 for side in said):
        raise ValueError(
            f"points: {' and '.join(names)} must be pixels, got {said[0]!r:.20} and {said[1]!r:.20}"
        )
    return said


def _person(person: dict[str, Any]) -> dict[str, np.ndarray]:
    """The parts of a `Pose`, in the coordinates of the file."""
    if "keypoints" in person:
        joints = _triples(person, "keypoints", (COCO_JOINTS,))
        joints[:, 2] = joints[:, 2].clip(0, 1)  # 2 is visible, 1 hidden but known
        return {"body": body_from_coco(joints)}
    body = _triples(person, "pose_keypoints_2d", (len(BODY), len(BODY_25) + 7))
    parts = {"body": body if len(body) == len(BODY) else body[list(BODY_25)]}
    names = {"left_hand": "hand_left_keypoints_2d", "right_hand": "hand_right_keypoints_2d"}
    for name, key in names.items():
        if person.get(key):
            parts[name] = _triples(person, key, (HAND_JOINTS,))
    if person.get("face_keypoints_2d"):
        parts["face"] = _triples(person, "face_keypoints_2d", range(1, MAX_FACE + 1))
    return parts


def _triples(person: dict[str, Any], key: str, counts: tuple[int, ...] | range) -> np.ndarray:
    """The list under `key` as float [n 3] with n among `counts`."""
    numbers = person.get(key)
    is_list = isinstance(numbers, list) and all(type(one) in (int, float) for one in numbers)
    if not is_list or len(numbers) % 3 or len(numbers) // 3 not in counts:
        allowed = f"up to {MAX_FACE}" if isinstance(counts, range) else " or ".join(map(str, counts))
        raise ValueError(f"points: {key} must be a list of x, y, confidence for {allowed} joints")
    try:
        joints = np.array(numbers, float).reshape(-1, 3)
    except OverflowError:
        joints = np.full((1, 3), np.inf)
    if not np.isfinite(joints).all():
        raise ValueError(f"points: {key} holds a number that is none")
    return joints


def _checked(part: np.ndarray) -> np.ndarray:
    if (np.abs(part[:, :2]) > FAR).any():
        words = "say the size that they are measured in as canvas_width and canvas_height"
        raise ValueError(f"points: joints lie far outside of the picture: {words}")
    return part
