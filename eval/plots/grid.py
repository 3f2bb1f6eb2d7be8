"""Folders of pictures side by side, with PSNR and SSIM to the right answers under each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.plots.style import DPI, WIDTH

SHOWN = 8
INPUTS = ("inputs", "maps")  # folders that no right answer is asked of
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def has_pictures(folder: Path) -> bool:
    """Whether a folder holds any; FileNotFoundError where there is none."""
    return bool(_pictures(folder))


def plot_grid(folders: Sequence[Path], truth: Path | None, out: Path) -> Path:
    """A row a folder, a column a name that all have. ValueError names the first that do not pair."""
    from matplotlib import pyplot

    from common.atomic import atomic_write

    held = {folder.name: _pictures(folder) for folder in folders}
    right = _pictures(truth) if truth else {}
    names = [name for name in next(iter(held.values())) if all(name in side for side in held.values())][
        :SHOWN
    ]
    if not names:
        first = [sorted(side)[:3] for side in held.values()]
        raise ValueError(f"the folders' pictures do not pair by name: {'; '.join(map(', '.join, first))}")
    figure, all_axes = pyplot.subplots(
        len(held), len(names), layout="constrained", squeeze=False,
        figsize=(WIDTH, (WIDTH / (len(names) + 0.4) + 0.25) * len(held) + 0.2),
    )  # fmt: skip
    for line, (label, side) in enumerate(held.items()):
        for column, name in enumerate(names):
            axes, image = all_axes[line, column], _read(side[name])
            axes.imshow(image)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            if line == 0:
                axes.set_title(name, fontsize=7)
            if column == 0:
                axes.set_ylabel(label, fontsize=8)
            if name in right and label not in INPUTS:
                axes.set_xlabel(_likeness(image, _read(right[name])), fontsize=6)
    path = out / "grid.png"
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI)
    pyplot.close(figure)
    return path


def _likeness(image: np.ndarray, truth: np.ndarray) -> str:
    """Such as `30.1 dB 0.97`; nothing where sizes differ, as for the input."""
    from eval.metrics.likeness import psnr, ssim

    if image.shape != truth.shape:
        return ""
    return f"{psnr([image], [truth])[0]:.1f} dB {ssim([image], [truth])[0]:.2f}"


def _pictures(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}


def _read(path: Path) -> np.ndarray:
    from annotator.util import HWC3
    from ldm.image import read_image

    return HWC3(read_image(path))
