"""Names what is drawn: black outlines, filled drawings and flat pictures, of the words it was trained on.

A small convolutional classifier. Its file is self-contained: the words lie beside the weights, as metadata.
Paper, chalkboard and coloured backgrounds are one to it: it sees how far each pixel is from the background,
cut out around what is drawn and scaled to one size.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

SIDE = 64  # pixels that the classifier sees
MARGIN = 4  # of them, free around the drawing
WIDTHS = (32, 64, 128, 256)
INK = 0.15  # of the strongest difference from the background: weaker pixels are paper
FAINTEST = 8  # of 255: a difference below it is an empty page
FOLDER = Path(__file__).parents[1] / "models"
RECOGNIZER = FOLDER / "recognizer.safetensors"


class Recognizer(nn.Module):
    """`[b, 3, 64, 64]` from `see` -> logits `[b, words]`."""

    def __init__(self, words: tuple[str, ...]) -> None:
        super().__init__()
        self.words = words
        layers: list[nn.Module] = []
        for before, after in zip((3, *WIDTHS[:-1]), WIDTHS, strict=True):
            layers += _convolution(before, after, stride=2)
            layers += _convolution(after, after, stride=1)
        self.features = nn.Sequential(*layers)
        self.classify = nn.Linear(4 * WIDTHS[-1], len(words))

    def forward(self, seen: Tensor) -> Tensor:
        """Logits of every word, in the order of `words`."""
        pooled = F.adaptive_avg_pool2d(self.features(seen), 2)  # what is above, below, left and right
        return self.classify(pooled.flatten(1))

    @torch.inference_mode()
    def top(self, image: np.ndarray, k: int = 5) -> list[tuple[str, float]]:
        """The k likeliest words of a drawing, uint8 [H W 3] or [H W], with probabilities, the first the best.

        Nothing for an empty page.
        """
        seen = see(image)
        if seen is None:
            return []
        chances = self(torch.from_numpy(seen)[None]).softmax(dim=1)[0]
        best = chances.topk(min(k, len(self.words)))
        return [
            (self.words[i], chance)
            for i, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def load_recognizer(path: Path = RECOGNIZER) -> Recognizer:
    """The recognizer in a file, ready to look; FileNotFoundError names the file that is missing."""
    if not path.exists():
        raise FileNotFoundError(f"there is no recognizer in {path}")
    with safe_open(path, "pt") as file:
        net = Recognizer(tuple(json.loads(file.metadata()["words"])))
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return net.eval().requires_grad_(False)


def see(image: np.ndarray) -> np.ndarray | None:
    """What the recognizer looks at, float32 [3 SIDE SIDE] in [0, 1]; None for an empty page.

    image: uint8 [H W 3] or [H W], of any size.
    """
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    rim = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    difference = np.abs(image.astype(np.float32) - np.median(rim, axis=0).astype(np.float32))
    strength = difference.max(axis=2)
    if strength.max() < FAINTEST:
        return None
    ys, xs = np.nonzero(strength > INK * strength.max())
    cut = difference[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] / strength.max()
    scale = (SIDE - 2 * MARGIN) / max(cut.shape[:2])
    height, width = (max(1, round(length * scale)) for length in cut.shape[:2])
    small = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    seen = np.zeros((SIDE, SIDE, 3), np.float32)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    seen[top : top + height, left : left + width] = small
    peak = seen.max()
    return np.ascontiguousarray((seen / peak).transpose(2, 0, 1))


def _convolution(before: int, after: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.SiLU(inplace=True),
    ]
