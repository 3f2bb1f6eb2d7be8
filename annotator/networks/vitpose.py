"""People's joints by two networks with a permissive licence: RT-DETR finds people, ViTPose their 17 joints.

Zhao et al. 2024, "DETRs Beat YOLOs on Real-time Object Detection"; Xu et al. 2022, "ViTPose"; both by
transformers, trained on COCO.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from annotator.detector import Annotate
from annotator.networks.libraries import pretrained, processor
from annotator.pose import Pose, body_from_coco, draw_poses
from annotator.util import HWC3, resize_image
from annotator.weights import WrongWeights

PERSON = "person"
MOST_PEOPLE = 30  # each is a forward pass of ViTPose; the surest are taken
JOINTS = 17


def load(files: list[Path], device: torch.device) -> Annotate:
    """Skeletons by the RT-DETR of the first folder and the ViTPose of the second."""
    from transformers import AutoImageProcessor, RTDetrForObjectDetection, VitPoseForPoseEstimation

    finder = pretrained(RTDetrForObjectDetection, files[0], device)
    look = processor(AutoImageProcessor, files[0])
    network = pretrained(VitPoseForPoseEstimation, files[1], device)
    prepare = processor(AutoImageProcessor, files[1])
    if PERSON not in finder.config.id2label.values():
        raise WrongWeights(f"{files[0]} knows no class {PERSON!r}")

    def annotate(image: np.ndarray, *, resolution: int, people: float, joints: float) -> np.ndarray:
        picture = resize_image(HWC3(image), resolution)
        boxes = find_people(finder, look, picture, people)
        return draw_poses(find_joints(network, prepare, picture, boxes), picture.shape[:2], seen=joints)

    return annotate


def find_people(finder: nn.Module, look: Any, picture: np.ndarray, sure: float) -> np.ndarray:
    """Boxes of people in `picture`, uint8 [H W 3], the surest first: float [n 4] as x, y, width, height.

    sure: how sure the network must be at least, 0 to 1.
    """
    batch = look(picture, return_tensors="pt").to(finder.device)
    found = look.post_process_object_detection(
        finder(**batch), threshold=sure, target_sizes=[picture.shape[:2]]
    )[0]
    names = finder.config.id2label
    person = torch.tensor([names[int(label)] == PERSON for label in found["labels"]], dtype=torch.bool)
    corners = found["boxes"].cpu()[person].numpy().reshape(-1, 4)
    order = np.argsort(-found["scores"].cpu()[person].numpy(), kind="stable")[:MOST_PEOPLE]
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)[order]
    return boxes[(boxes[:, 2:] >= 1).all(axis=1)]


def find_joints(network: nn.Module, prepare: Any, picture: np.ndarray, boxes: np.ndarray) -> list[Pose]:
    """The pose of the person in each of `boxes` [n 4] of `picture`, uint8 [H W 3]."""
    return [_pose(network, prepare, picture, box) for box in boxes]


def _pose(network: nn.Module, prepare: Any, picture: np.ndarray, box: np.ndarray) -> Pose:
    height, width = picture.shape[:2]
    batch = prepare(picture, boxes=[[box.tolist()]], return_tensors="pt").to(network.device)
    person = prepare.post_process_pose_estimation(network(**batch), boxes=[[box.tolist()]])[0][0]
    places = person["keypoints"].cpu().numpy().reshape(JOINTS, 2) / (width, height)
    coco = np.concatenate([places, person["scores"].cpu().numpy().reshape(JOINTS, 1)], axis=1)
    return Pose(body_from_coco(coco))
