"""Name what is drawn: a recognizer for drawings of all kinds, and a judge that looks at generated images.

Two small convolutional classifiers over the words of their training. Their designs and inputs differ, so that
nothing judges itself. A file is self-contained: the words lie beside the weights, as metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

SIDE = 64  # pixels that either sees
MARGIN = 4  # of them, free around the drawing
SQUARE = 1.2  # of the thing's longer side: what the judge sees of an image
INK = 0.15  # of the strongest difference from the background: weaker pixels are paper
FAINTEST = 8  # of 255: a difference below it is an empty page
FOLDER = Path(__file__).parents[1] / "models"
RECOGNIZER, JUDGE = FOLDER / "recognizer.safetensors", FOLDER / "things_judge.safetensors"
Net = TypeVar("Net", bound="Recognizer | Judge")


class Recognizer(nn.Module):
    """Black outlines, chalk, filled drawings, flat pictures: [b, 3, 64, 64] of `see` -> logits [b, words]."""

    WIDTHS = (32, 64, 128, 256)  # halved in size each: 64 pixels become 4

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self.words = tuple(words)
        layers: list[nn.Module] = []
        for before, after in zip((3, *self.WIDTHS), self.WIDTHS, strict=False):
            layers += [*_convolution(before, after, 2), *_convolution(after, after, 1)]
        self.features = nn.Sequential(*layers)
        self.classify = nn.Linear(4 * self.WIDTHS[-1], len(self.words))

    def forward(self, seen: Tensor) -> Tensor:
        """Logits of every word, in the order of `words`."""
        pooled = F.adaptive_avg_pool2d(self.features(seen), 2)  # what is above, below, left and right
        return self.classify(pooled.flatten(1))

    @torch.inference_mode()
    def top(self, image: np.ndarray, k: int = 5) -> list[tuple[str, float]]:
        """The k likeliest words with their probabilities, the best first; nothing for an empty page.

        image: uint8 [H W 3] or [H W], of any size.
        """
        seen = see(image)
        if seen is None:
            return []
        both_ways = torch.from_numpy(np.stack([seen, seen[..., ::-1]]))  # a mirrored cat is a cat
        chances = self(both_ways).softmax(dim=1).mean(dim=0)
        best = chances.topk(min(k, len(self.words)))
        return [(self.words[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


class Judge(nn.Module):
    """Residual blocks over a whole image, [b, 3, 64, 64] of `look` -> logits [b, words]."""

    WIDTHS = (32, 64, 128, 192)  # another design: what misleads one shall not mislead the other

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self.words = tuple(words)
        self.enter = nn.Conv2d(3, self.WIDTHS[0], 5, 2, padding=2)
        self.blocks = nn.Sequential(*map(_Residual, self.WIDTHS, self.WIDTHS[1:]))
        self.classify = nn.Linear(self.WIDTHS[-1], len(self.words))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of every word, in the order of `words`."""
        return self.classify(self.blocks(F.relu(self.enter(image))).mean(dim=(2, 3)))

    @torch.inference_mode()
    def order(self, images: Sequence[np.ndarray]) -> list[list[str]]:
        """For each image uint8 [H W 3], all words, the likeliest first."""
        ranked = (self(look(image)[None])[0].argsort(descending=True).tolist() for image in images)
        return [[self.words[i] for i in one] for one in ranked]


class _Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(before, after, 3, 2, padding=1, bias=False)
        halves = [(nn.BatchNorm2d(after), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1, bias=False))
                  for _ in range(2)]  # fmt: skip
        self.inner = nn.Sequential(*halves[0], *halves[1])
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(x)
        return F.relu(self.norm(h + self.inner(h)))


def _convolution(before: int, after: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.SiLU(inplace=True)]


def see(image: np.ndarray) -> np.ndarray | None:
    """What the recognizer looks at, float32 [3 SIDE SIDE] in [0, 1]; None for an empty page.

    How far each pixel is from the background, cut out around what is drawn and scaled to one size: paper,
    chalkboard and coloured backgrounds are one to it. image: uint8 [H W 3] or [H W], of any size.
    """
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    difference = np.abs(image.astype(np.float32) - _background(image))
    if difference.max() < FAINTEST:
        return None
    left, top, width, height = _ink(difference)
    cut = difference[top : top + height, left : left + width]
    scale = (SIDE - 2 * MARGIN) / max(width, height)
    width, height = (max(1, round(length * scale)) for length in (width, height))
    small = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    seen = np.zeros((SIDE, SIDE, 3), np.float32)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    seen[top : top + height, left : left + width] = small
    return np.ascontiguousarray((seen / seen.max()).transpose(2, 0, 1))


def look(image: np.ndarray) -> Tensor:
    """What the judge looks at: a square of what stands out of uint8 [H W 3]; [3 SIDE SIDE] in [-1, 1]."""
    left, top, width, height = _ink(np.abs(image.astype(np.float32) - _background(image)))
    length = max(width, height) * SQUARE
    scale = SIDE / length
    shift = SIDE / 2 - scale * np.array([left + width / 2, top + height / 2])
    placed = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    flags = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.warpAffine(image, placed, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return torch.from_numpy(small.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1)


def _background(image: np.ndarray) -> np.ndarray:
    """The colour along the border, float32 [3]."""
    rim = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return np.median(rim, axis=0).astype(np.float32)


def _ink(difference: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width and height of what stands out from the background, [H W 3]; all of a plain image."""
    strength = difference.max(axis=2)
    return cv2.boundingRect((strength >= INK * strength.max()).astype(np.uint8))


def load_net(kind: type[Net], path: Path) -> Net:
    """The `Recognizer` or `Judge` in a file of `python -m trainer.tiny.recognizer`, ready to look."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: python -m trainer.tiny.recognizer makes it")
    with safe_open(path, "pt") as file:
        net = kind(json.loads(file.metadata()["words"]))
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return net.eval().requires_grad_(False)
