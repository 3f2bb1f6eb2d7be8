"""People's skeletons by OpenPose, with hands and faces where their networks are given.

Cao et al. 2017, "Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields". Bodies are seen at a
height of 184 pixels, as published. The networks take blue, green, red.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from annotator.detector import Annotate
from annotator.networks.libraries import auxiliary, build
from annotator.networks.openpose_parts import Person, See, face_box, find_face, find_hand, hand_box
from annotator.networks.part_affinity import find_peaks, find_people
from annotator.networks.tensors import scaled, to_batch
from annotator.pose import BODY, Pose, draw_poses
from annotator.util import HWC3, resize_image, target_size

BODY_HEIGHT, WIDEST = 184, 8  # pixels; a strip that is wider than so many times its height is seen smaller
STRIDE, GREY = 8, 128  # pixels for one of the networks'; what fills the picture up to whole ones
SEEN_AT = 768  # the longest short side that is looked at; heatmaps of larger pictures fill gigabytes
HAND, FACE = "hand", "face"


@dataclass(frozen=True)
class Eyes:
    """The networks as functions of a picture; parts: HAND and FACE, where they are looked for."""

    body: See
    parts: dict[str, See] = field(default_factory=dict)


def load(files: list[Path], device: torch.device, *, parts: tuple[str, ...] = ()) -> Annotate:
    """Skeletons by the body network of the first file and those of `parts` (HAND, FACE) of the others."""
    eyes = load_eyes(files, device, parts)

    def annotate(image: np.ndarray, *, resolution: int) -> np.ndarray:
        size = target_size(*image.shape[:2], resolution)
        picture = resize_image(HWC3(image), min(resolution, SEEN_AT))
        people = people_of(*find_bodies(eyes, picture))
        return draw_poses([pose_of(one, picture, eyes) for one in people], size, seen=0)

    return annotate


def load_eyes(files: list[Path], device: torch.device, parts: tuple[str, ...]) -> Eyes:
    """The body network of the first file and those of `parts` (HAND, FACE) of the others."""
    module = auxiliary("open_pose.model")
    makers = {HAND: module.handpose_model, FACE: auxiliary("open_pose.face").FaceNet}
    body = build(module.bodypose_model, files[0], device, inner=True)
    others = {
        part: _see(build(makers[part], file, device, inner=part == HAND), device)
        for part, file in zip(parts, files[1:], strict=True)
    }
    return Eyes(_see(body, device), others)


def find_bodies(eyes: Eyes, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Peaks [n 4] and people [m 20] in `picture`, uint8 [H W 3], as `find_peaks` and `find_people` say."""
    height, width = picture.shape[:2]
    scale = min(BODY_HEIGHT / height, BODY_HEIGHT * WIDEST / width)
    shown = scaled(picture, (max(1, int(height * scale)), max(1, int(width * scale))))
    down, right = (-side % STRIDE for side in shown.shape[:2])
    filled = cv2.copyMakeBorder(shown, 0, down, 0, right, cv2.BORDER_CONSTANT, value=(GREY,) * 3)
    fields, heatmaps = (_under(out, shown, picture) for out in eyes.body(filled))
    peaks = find_peaks(heatmaps)
    return peaks, find_people(peaks, fields)


def people_of(peaks: np.ndarray, people: np.ndarray) -> list[Person]:
    """The joints of each person by name."""
    rows = people[:, : len(BODY)].astype(int)
    return [
        {name: peaks[peak, :3] for name, peak in zip(BODY, row, strict=True) if peak >= 0} for row in rows
    ]


def pose_of(person: Person, picture: np.ndarray, eyes: Eyes) -> Pose:
    """The pose of `person` in `picture`, uint8 [H W 3], with the hands and the face that are looked for."""
    height, width = size = picture.shape[:2]
    found = {"body": np.array([person.get(name, np.zeros(3)) for name in BODY])}
    for side in ("left", "right") if HAND in eyes.parts else ():
        if box := hand_box(person, side, size):
            found[f"{side}_hand"] = find_hand(eyes.parts[HAND], picture, box)
    if FACE in eyes.parts and (box := face_box(person, size)):
        found["face"] = find_face(eyes.parts[FACE], picture, box)
    return Pose(**{part: joints / (width, height, 1) for part, joints in found.items()})


def _see(network: nn.Module, device: torch.device) -> See:
    def see(picture: np.ndarray) -> list[np.ndarray]:
        batch = to_batch(picture[:, :, ::-1], device) * (255 / 256) - 0.5  # published: bytes / 256
        outputs = network(batch)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        return [one[0].permute(1, 2, 0).cpu().numpy() for one in outputs]

    return see


def _under(output: np.ndarray, shown: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """The network's `output` [h w c] for the filled-up `shown`, at the size of `picture`: [H W c]."""
    large = scaled(output, (len(output) * STRIDE, output.shape[1] * STRIDE))
    return scaled(large[: shown.shape[0], : shown.shape[1]], picture.shape[:2])
