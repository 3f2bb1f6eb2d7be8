"""Training samples of a tiny model, drawn on the fly: sample `i` of a stream is the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from trainer.tiny.worlds import World

SIDE = 128  # pixels of every scene
VAE_BATCH = 8  # scenes of one kind each: whole, or patches
WHOLE_EVERY = 8  # batches: the middle attention must see whole pictures too
PATCH, PATCHES = 32, 4  # pixels a side, and how many of one picture
STREAMS = {"vae": 1, "decoder": 5, "text": 6}  # so that no stage sees scenes of another
SCENES, HINTS, PATCHES_AT = 2, 3, 4  # further streams: of base and control, of pens, of corners
WITH_HINTS = ("control", "joint")


Posed = Callable[[int], float]  # a scene's number -> how likely its thing stands upright in the middle


def never(index: int) -> float:
    """No scene is posed."""
    return 0.0


class TinyScenes(Dataset):
    """Scenes as tensors: target [3 H W] in [-1, 1]; with latents, hint [3 H W] in [0, 1] and prompt too.

    latents: [n c h w] of the first n scenes of stream "base", which come round again and again.
    """

    def __init__(self, world: World, stage: str, seed: int, posed: Posed = never,
                 latents: np.ndarray | None = None) -> None:  # fmt: skip
        self.world, self.stage, self.seed, self.posed = world, stage, seed, posed
        self.latents = latents
        self.stream = STREAMS.get(stage, SCENES)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        if self.stage in ("vae", "decoder"):
            return {"target": _views(self.target(index), index)}
        if self.stage == "whole":
            return {"target": self.target(index)}
        if self.stage == "text":
            scene = self.scene(index)
            return {"prompt": scene.prompt, "facts": torch.from_numpy(self.world.facts(scene))}
        assert self.latents is not None, f"{self.stage} is trained on latents"
        row = index % len(self.latents)
        scene = self.scene(row)
        latent = torch.from_numpy(self.latents[row].astype(np.float32))
        sample = {"latent": latent, "prompt": scene.prompt}
        if self.stage not in WITH_HINTS:
            return sample
        rng = np.random.default_rng([self.seed, HINTS, index])
        sample["hint"] = to_tensor(self.world.hint(scene, rng, SIDE))
        return {**sample, "posed": scene.posed} if self.stage == "joint" else sample

    def scene(self, index: int) -> Any:
        """Scene `index` of this stream."""
        return self.world.scene(np.random.default_rng([self.seed, self.stream, index]), self.posed(index))

    def target(self, index: int) -> Tensor:
        """Its picture, [3 H W] in [-1, 1]."""
        return to_tensor(self.world.target(self.scene(index), SIDE)) * 2 - 1


def _views(picture: Tensor, index: int) -> Tensor:
    """[k 3 H W]: seven pictures in eight as random patches, the others whole.

    The autoencoder is convolutional: patches show it more colours an hour, and colours are what it learns
    last.
    """
    if index // VAE_BATCH % WHOLE_EVERY == 0:
        return picture[None]
    corners = np.random.default_rng([PATCHES_AT, index]).integers(0, SIDE - PATCH + 1, size=(PATCHES, 2))
    return torch.stack([picture[:, top : top + PATCH, left : left + PATCH] for top, left in corners])


def to_tensor(picture: np.ndarray) -> Tensor:
    """uint8 [H W 3] -> float [3 H W] in [0, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255
