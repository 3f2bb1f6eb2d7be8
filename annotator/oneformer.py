"""The published doors to what pixels show, by OneFormer: `OneformerADE20kDetector()(image)` and COCO's."""

from pathlib import Path

import numpy as np
import torch

from annotator.class_colors import ADE20K, COCO
from annotator.networks import segmentation
from annotator.registry import files_of
from annotator.util import HWC3


class OneformerADE20kDetector:
    """The published callable, with weights from models/annotators; ValueError says how to get them."""

    name, dataset, side = "oneformer_ade20k", ADE20K, 640

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        files = files_of(self.name, folder)
        self.classify = segmentation.oneformer(files[0], torch.device(device), self.dataset)

    @torch.inference_mode()
    def __call__(self, img: np.ndarray) -> np.ndarray:
        """Class colours of RGB uint8 [H W 3]: uint8 [H W 3]."""
        return segmentation.colour(self.classify, HWC3(img), self.dataset, self.side)


class OneformerCOCODetector(OneformerADE20kDetector):
    """The same in COCO's colours."""

    name, dataset, side = "oneformer_coco", COCO, 800
