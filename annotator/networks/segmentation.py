"""What every pixel shows, in the colours of ADE20K or COCO.

Jain et al. 2023, "OneFormer"; Xiao et al. 2018, "Unified Perceptual Parsing" (UperNet, here on ConvNeXt); Xie
et al. 2021, "SegFormer"; all by transformers. OneFormer is told by a sentence what to do; its processor would
ask the hub for the names of classes, which nothing here needs.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from annotator.class_colors import class_colors
from annotator.detector import Annotate
from annotator.networks.libraries import pretrained, processor
from annotator.networks.tensors import near_side
from annotator.util import HWC3, resize_image
from annotator.weights import WrongWeights

Classify = Callable[[np.ndarray], Tensor]  # picture uint8 [H W 3] -> scores [1 classes h w]
STEP = 32  # the coarsest of the networks' levels
TASK = "the task is semantic"
TASK_WORDS = 77  # tokens, filled up with nothing


def load(files: list[Path], device: torch.device, *, dataset: str, side: int) -> Annotate:
    """Class colours by the UperNet or SegFormer of the one folder, which sees the short side at `side`."""
    return _annotator(segmenter(files[0], device, dataset), dataset, side)


def load_oneformer(files: list[Path], device: torch.device, *, dataset: str, side: int) -> Annotate:
    """Class colours by the OneFormer of the one folder, which sees the short side at `side`."""
    return _annotator(oneformer(files[0], device, dataset), dataset, side)


def segmenter(folder: Path, device: torch.device, dataset: str) -> Classify:
    """What the UperNet or SegFormer of `folder` sees."""
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    network = pretrained(AutoModelForSemanticSegmentation, folder, device)
    prepare = processor(AutoImageProcessor, folder)
    _check_classes(network, folder, dataset)

    def classify(picture: np.ndarray) -> Tensor:
        return network(**_batch(prepare, picture, device)).logits

    return classify


def oneformer(folder: Path, device: torch.device, dataset: str) -> Classify:
    """What the OneFormer of `folder` sees."""
    from transformers import CLIPTokenizer, OneFormerForUniversalSegmentation, OneFormerImageProcessor

    network = pretrained(OneFormerForUniversalSegmentation, folder, device)
    prepare = processor(OneFormerImageProcessor, folder, class_info_file=None)
    _check_classes(network, folder, dataset)
    task = _task(processor(CLIPTokenizer, folder)).to(device)

    def classify(picture: np.ndarray) -> Tensor:
        seen = network(task_inputs=task, **_batch(prepare, picture, device))
        names = seen.class_queries_logits.softmax(dim=-1)[..., :-1]  # [1 queries classes], without "nothing"
        return torch.einsum("bqc,bqhw->bchw", names, seen.masks_queries_logits.sigmoid())

    return classify


def colour(classify: Classify, picture: np.ndarray, dataset: str, side: int) -> np.ndarray:
    """The class colours of `picture`, uint8 [H W 3], seen with its short side at `side`: uint8 [H W 3]."""
    return paint(classify(near_side(picture, side, STEP)), picture.shape[:2], dataset)


def paint(scores: Tensor, size: tuple[int, int], dataset: str) -> np.ndarray:
    """The colour of the best class of each pixel, from scores [1 classes h w]: uint8 [H W 3] of `size`."""
    best = F.interpolate(scores.float(), size, mode="bilinear").argmax(dim=1)[0]
    return class_colors(dataset)[best.cpu().numpy()]


def _annotator(classify: Classify, dataset: str, side: int) -> Annotate:
    def annotate(image: np.ndarray, *, resolution: int) -> np.ndarray:
        return colour(classify, resize_image(HWC3(image), resolution), dataset, side)

    return annotate


def _batch(prepare: Callable, picture: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    return {"pixel_values": prepare(picture, do_resize=False, return_tensors="pt")["pixel_values"].to(device)}


def _task(tokenizer: Callable) -> Tensor:
    """[1 77] token ids of the sentence; what fills it up is 0, whatever the tokenizer's own padding is."""
    words = tokenizer(TASK, padding="max_length", max_length=TASK_WORDS, truncation=True, return_tensors="pt")
    return words["input_ids"] * words["attention_mask"]


def _check_classes(network: nn.Module, folder: Path, dataset: str) -> None:
    wanted, given = len(class_colors(dataset)), network.config.num_labels
    if given != wanted:
        raise WrongWeights(f"{folder} knows {given} classes, {dataset} has {wanted}")
