"""The published door to OpenPose: of ControlNet 1.0 with `hand`, of 1.1 with `hand_and_face`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from annotator.networks import openpose
from annotator.pose import draw_poses
from annotator.registry import files_of
from annotator.util import HWC3


class OpenposeDetector:
    """The published callable, with weights from models/annotators; ValueError says how to get them.

    Hands and faces are looked for by the networks whose files are there when they are asked for.
    """

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.folder, self.device = folder, torch.device(device)
        self.eyes = {"openpose": openpose.load_eyes(files_of("openpose", folder), self.device, ())}

    @torch.inference_mode()
    def __call__(
        self, oriImg: np.ndarray, hand: bool = False, hand_and_face: bool | None = None
    ) -> tuple[np.ndarray, dict[str, Any]] | np.ndarray:
        """Skeletons of RGB uint8 [H W 3] as uint8 [H W 3], and with 1.0's form joints and who has them.

        The dictionary has "candidate" (x, y, score, number of each joint) and "subset" (a row a person: 18 of
        these numbers or -1, score, count).
        """
        parts = (openpose.HAND,) if hand else ()
        if hand_and_face is not None:
            parts = (openpose.HAND, openpose.FACE) if hand_and_face else ()
        picture, eyes = HWC3(oriImg), self._eyes(parts)
        peaks, people = openpose.find_bodies(eyes, picture)
        poses = [openpose.pose_of(one, picture, eyes) for one in openpose.people_of(peaks, people)]
        canvas = draw_poses(poses, picture.shape[:2], seen=0)
        if hand_and_face is not None:
            return canvas
        candidate = np.column_stack([peaks[:, :3], np.arange(len(peaks))])
        return canvas, {"candidate": candidate.tolist(), "subset": people.tolist()}

    def _eyes(self, parts: tuple[str, ...]) -> openpose.Eyes:
        name = {0: "openpose", 1: "openpose_hand", 2: "openpose_full"}[len(parts)]
        if name not in self.eyes:
            self.eyes[name] = openpose.load_eyes(files_of(name, self.folder), self.device, parts)
        return self.eyes[name]
