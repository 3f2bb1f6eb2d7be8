"""What HED sees in photographs: a picture for each, itself beside its maps, for the documentation.

    python -m annotator.maps --out docs/img

The photographs are scikit-image's. It needs HED's weights: `python tool_download_models.py get hed`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from annotator.detector import FOLDER
from annotator.registry import detect
from annotator.util import HWC3, resize_image
from common.atomic import atomic_write
from common.shell import Parser, run_command

PHOTOGRAPHS = "astronaut", "coffee", "camera"
DETECTORS = "hed", "hed_safe", "scribble_hed"
RESOLUTION, SHOWN = 512, 0.4375  # detected at the size of published models, shown at 224 pixels


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser("-m annotator.maps", __doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder (default: %(default)s)")
    parser.add_argument("--annotators", type=Path, default=FOLDER, help="folder of weights")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_args(argv)
    return run_command(lambda: "\n".join(str(_draw(name, args)) for name in PHOTOGRAPHS))


def _draw(name: str, args: argparse.Namespace) -> Path:
    from skimage import data

    photograph = HWC3(getattr(data, name)())
    maps = [detect(one, photograph, resolution=RESOLUTION, folder=args.annotators) for one in DETECTORS]
    row = np.hstack([resize_image(photograph, RESOLUTION), *maps])
    small = cv2.resize(row, None, fx=SHOWN, fy=SHOWN, interpolation=cv2.INTER_AREA)
    _, png = cv2.imencode(".png", small[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    path = args.out / f"hed_{name}.png"
    with atomic_write(path) as partial:
        partial.write_bytes(png.tobytes())
    return path


if __name__ == "__main__":
    raise SystemExit(main())
