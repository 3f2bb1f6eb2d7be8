"""The judge: says which word a picture shows. A network of its own design, that no generator has seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

SIDE = 64
WIDTHS = (32, 64, 128, 192)
JUDGE = Path(__file__).parents[1] / "models" / "things_judge.safetensors"


class Judge(nn.Module):
    """Residual blocks over a whole picture [b, 3, 64, 64] in [-1, 1] -> logits [b, words]."""

    def __init__(self, words: tuple[str, ...]) -> None:
        super().__init__()
        self.words = words
        self.enter = nn.Conv2d(3, WIDTHS[0], 5, 2, padding=2)
        pairs = zip(WIDTHS, WIDTHS[1:], strict=False)
        self.blocks = nn.Sequential(*(_Residual(before, after) for before, after in pairs))
        self.classify = nn.Linear(WIDTHS[-1], len(words))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of every word, in the order of `words`."""
        return self.classify(self.blocks(F.relu(self.enter(image))).mean(dim=(2, 3)))

    @torch.inference_mode()
    def ranks(self, images: Sequence[np.ndarray], named: Sequence[str]) -> np.ndarray:
        """How many words are likelier than the one named, int [n]; images: uint8 [H W 3]."""
        logits = torch.cat([self(torch.stack([look(one)])) for one in images])
        own = logits[torch.arange(len(named)), [self.words.index(name) for name in named]]
        return (logits > own[:, None]).sum(dim=1).numpy()

    @torch.inference_mode()
    def best(self, image: np.ndarray) -> str:
        """The likeliest word."""
        return self.words[int(self(look(image)[None]).argmax())]


class _Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(before, after, 3, 2, padding=1, bias=False)
        self.inner = nn.Sequential(
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
        )
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(x)
        return F.relu(self.norm(h + self.inner(h)))


def look(image: np.ndarray) -> Tensor:
    """What the judge looks at: uint8 [H W 3] -> [3 64 64] in [-1, 1]."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(small.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1)


def load_judge(path: Path = JUDGE) -> Judge:
    """The judge in a file of `python -m trainer.tiny.recognizer --net judge`."""
    if not path.exists():
        raise FileNotFoundError(f"there is no judge in {path}: python -m trainer.tiny.recognizer --net judge")
    with safe_open(path, "pt") as file:
        judge = Judge(tuple(json.loads(file.metadata()["words"])))
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    judge.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return judge.eval().requires_grad_(False)
