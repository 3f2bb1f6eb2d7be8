"""Training samples of the tiny model, drawn on the fly: sample `i` of a stream is the same everywhere."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scenes.colours import COLOURS
from scenes.shape_scenes import Scene, random_scene, render
from scenes.shapes import SHAPES

SIDE = 128
VAE_BATCH = 8  # scenes of one kind each: whole, or patches
WHOLE_EVERY = 8
PATCH, PATCHES = 32, 4
STREAMS = {"vae": 1, "decoder": 5, "text": 6}
SCENES, HINTS, PATCHES_AT = 2, 3, 4  # further streams: of base and control, of pens, of corners
HAND_DRAWN = 0.5  # half of the scenes are wobbled: people's outlines are
BINARY_HINTS = 0.5  # annotators give black and white, renderings have soft edges: the branch sees both
BINARY_THRESHOLD = 64
POSE_SHIFT, POSE_RADIUS = 0.06, (0.28, 0.38)  # of the side
POSE_TILT = np.pi / 36
WIDTHS = (1.0, 24.0)  # of lines, pixels at 512


class TinyScenes(Dataset):
    """Scenes as tensors: target [3 H W] in [-1, 1]; with latents, hint [3 H W] in [0, 1] and prompt too.

    posed: share of scenes whose shape stands exact and upright in the middle.
    """

    latents: np.ndarray | None = None  # [n c h w] of the first n scenes of stream "base"

    def __init__(self, stage: str, seed: int, posed: float = 0.0) -> None:
        self.stage, self.seed, self.posed = stage, seed, posed
        self.stream = STREAMS.get(stage, SCENES)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        if self.stage in ("vae", "decoder"):
            return {"target": _views(to_tensor(render(self._scene(index), SIDE)[1]) * 2 - 1, index)}
        if self.stage == "whole":
            return {"target": to_tensor(render(self._scene(index), SIDE)[1]) * 2 - 1}
        if self.stage == "text":
            scene = self._scene(index)
            return {"prompt": scene.prompt, "facts": facts(scene)}
        scene = self._scene(index % len(self.latents))
        latent = torch.from_numpy(self.latents[index % len(self.latents)].astype(np.float32))
        sample = {"latent": latent, "prompt": scene.prompt}
        return {**sample, "hint": self._hint(scene, index)} if self.stage == "control" else sample

    def _scene(self, index: int) -> Scene:
        rng = np.random.default_rng([self.seed, self.stream, index])
        scene = random_scene(rng, hand_drawn=HAND_DRAWN, widths=WIDTHS)
        return _posed(scene, rng) if rng.random() < self.posed else scene

    def _hint(self, scene: Scene, index: int) -> Tensor:
        """The outline, with another pen each time the scene comes round."""
        rng = np.random.default_rng([self.seed, HINTS, index])
        width = float(np.exp(rng.uniform(*np.log(WIDTHS))))
        source = render(replace(scene, width=width), SIDE)[0]
        if rng.random() < BINARY_HINTS:
            source = cv2.threshold(source, BINARY_THRESHOLD, 255, cv2.THRESH_BINARY)[1]
        return to_tensor(source)


def _posed(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same shape and colours, drawn exactly, upright, large and near the middle."""
    centre = tuple((0.5 + rng.uniform(-POSE_SHIFT, POSE_SHIFT, size=2)).tolist())
    tilt = rng.uniform(-POSE_TILT, POSE_TILT)
    return replace(scene, centre=centre, radius=rng.uniform(*POSE_RADIUS), angle=tilt, wobble=0.0, gaps=())


def facts(scene: Scene) -> Tensor:
    """What the prompt says, as numbers [15]: fill and background in [-1, 1], then 1 for the shape named."""
    colours = np.array([COLOURS[scene.fill], COLOURS[scene.background]], np.float32).ravel() / 127.5 - 1
    shapes = np.array([name == scene.shape for name in SHAPES], np.float32)
    return torch.from_numpy(np.concatenate([colours, shapes]))


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
