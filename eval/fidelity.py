"""How close each image is to the one it should be: shape, colours, likeness; their table and their bars.

The functions know images only, not how they were made, so that every table (control on and off, schemes,
branches, pruning) can be filled by the same code. PSNR and SSIM compare pixel by pixel, so they are only
meaningful where one right answer exists: an image and its ground truth, or the same seed before and after a
change of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.control import RGB, colour_error, filled_mask, mask_iou
from eval.metrics.likeness import psnr, ssim

# An image follows its outline: at 128 pixels about half a pixel of error all round a small shape.
IOU_BAR = 0.90
COLOUR_BAR = 25.0  # of 255, mean over a region and the three channels: a neighbouring name at worst
BARS = {"followed_share": 0.95, "coloured_share": 0.90, "median_psnr": 22.0, "median_ssim": 0.85}
LABELS = {
    "followed_share": f"outline followed (IoU >= {IOU_BAR:.2f})",
    "coloured_share": f"both colours within {COLOUR_BAR:.0f}/255",
    "median_psnr": "median PSNR",
    "median_ssim": "median SSIM",
    "median_iou": "median IoU",
}
LABEL_WIDTH, VALUE_WIDTH = 34, 12
Summary = dict[str, float]  # by the names of LABELS; shares are 0 to 1


@dataclass(frozen=True)
class Truth:
    """What one image should be: target uint8 [H W 3], its fill as bool [H W], and the two named colours."""

    target: np.ndarray
    mask: np.ndarray
    fill: RGB
    background: RGB


@dataclass(frozen=True)
class FidelityScores:
    """One value an image, each float [n], in the order of the images.

    iou: of the filled region and the interior, 0 to 1. fill_error, background_error: mean absolute error of
    the colour in the region where it belongs, 0 to 255. psnr: dB. ssim: up to 1.
    """

    iou: np.ndarray
    fill_error: np.ndarray
    background_error: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray

    @property
    def followed(self) -> np.ndarray:
        """Which images follow their outline, bool [n]."""
        return self.iou >= IOU_BAR

    @property
    def coloured(self) -> np.ndarray:
        """Which images have both of the named colours, bool [n]."""
        return np.maximum(self.fill_error, self.background_error) <= COLOUR_BAR

    def summary(self) -> dict[str, float]:
        """Shares (0 to 1) and medians over the images."""
        return {
            "followed_share": float(self.followed.mean()),
            "coloured_share": float(self.coloured.mean()),
            "median_iou": float(np.median(self.iou)),
            "median_psnr": float(np.median(self.psnr)),
            "median_ssim": float(np.median(self.ssim)),
        }


def measure(images: Sequence[np.ndarray], truths: Sequence[Truth]) -> FidelityScores:
    """Score images uint8 [H W 3], each against its truth of the same size; errors as `psnr`."""
    targets = [truth.target for truth in truths]
    likeness = {"psnr": psnr(images, targets), "ssim": ssim(images, targets)}
    pairs = list(zip(images, truths, strict=True))
    return FidelityScores(
        iou=np.array([mask_iou(filled_mask(p, t.fill, t.background), t.mask) for p, t in pairs]),
        fill_error=np.array([colour_error(p, t.mask, t.fill).mean() for p, t in pairs]),
        background_error=np.array([colour_error(p, ~t.mask, t.background).mean() for p, t in pairs]),
        **likeness,
    )


def quality_table(report: dict[str, Any]) -> str:
    """Format a report of `eval.fill50k.quality`: each score, its bar, and what it is to be seen beside."""
    scores, without, ceiling = report["controlled"], report["uncontrolled"], report["autoencoder"]
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items() if value is not None)
    lines = [f"{report['count']} held-out pictures: {settings}"]
    for name, bar in BARS.items():
        verdict = f"bar {_shown(name, bar)}: {'passed' if scores[name] >= bar else 'MISSED'}"
        lines.append(_line(LABELS[name], _shown(name, scores[name]), verdict))
    lines += [
        _line("followed, hand-drawn third", _shown("followed_share", report["hand_drawn_followed_share"])),
        _line("followed, without control", _shown("followed_share", without["followed_share"])),
        _line("followed, autoencoder alone", _shown("followed_share", ceiling["followed_share"])),
        _line("colours, autoencoder alone", _shown("coloured_share", ceiling["coloured_share"])),
        _line(LABELS["median_iou"], _shown("median_iou", scores["median_iou"])),
        _line("median IoU, without control", _shown("median_iou", without["median_iou"])),
        _line("seconds per picture", f"{report['seconds_per_picture']:.2f}"),
    ]
    return "\n".join(lines)


def robustness_table(rows: dict[str, Summary]) -> str:
    """Format the rows of `eval.fill50k.robustness`, one way of drawing each."""
    columns = ("followed_share", "coloured_share", "median_iou")
    lines = [_line("outline read by scribble", "followed", "colours", "median IoU")]
    lines += [_line(name, *(_shown(column, row[column]) for column in columns)) for name, row in rows.items()]
    return "\n".join(lines)


def missed(report: dict[str, Any]) -> list[str]:
    """Name the bars that a report of `eval.fill50k.quality` misses, in words; a NaN misses every bar."""
    scores = report["controlled"]
    return [
        f"{LABELS[name]} is {_shown(name, scores[name])}, the bar is {_shown(name, bar)}"
        for name, bar in BARS.items()
        if not scores[name] >= bar
    ]


def _shown(name: str, value: float) -> str:
    if name.endswith("share"):
        return f"{100 * value:.1f} %"
    return f"{value:.2f} dB" if name.endswith("psnr") else f"{value:.3f}"


def _line(label: str, *values: str) -> str:
    return f"{label:<{LABEL_WIDTH}}" + "  ".join(f"{value:>{VALUE_WIDTH}}" for value in values)
