"""What HED sees in photographs: a picture for each, itself beside its maps, and how far it agrees with Canny.

    python -m annotator.maps --out docs/img

The photographs are scikit-image's. It needs HED's weights: `python tool_download_models.py get hed`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np

from annotator import canny
from annotator.detector import FOLDER
from annotator.registry import detect
from annotator.util import HWC3, resize_image
from common.atomic import atomic_write
from common.shell import Parser, run_command

PHOTOGRAPHS = "astronaut", "coffee", "camera"
DETECTORS = "hed", "hed_safe", "scribble_hed"
STRONGEST, NEAR = 0.05, 3  # the part of all pixels, and how many of them an edge may be away
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
    return run_command(lambda: "\n".join(_draw(name, args) for name in PHOTOGRAPHS))


def near_canny(edges: np.ndarray, photograph: np.ndarray) -> float:
    """Which part of the strongest pixels of soft `edges`, uint8 [H W], lies beside an edge that Canny finds.

    photograph: uint8 [H W 3], what they are the edges of. Canny's thresholds are the published ones.
    """
    distance = cv2.distanceTransform(255 - cv2.Canny(photograph, canny.LOW, canny.HIGH), cv2.DIST_L2, 5)
    count = round(edges.size * STRONGEST)
    found = np.argsort(edges, axis=None, kind="stable")[-count:]
    return float((distance.ravel()[found] <= NEAR).mean())


def _draw(name: str, args: argparse.Namespace) -> str:
    from skimage import data

    photograph = resize_image(HWC3(getattr(data, name)()), RESOLUTION)
    start = time.perf_counter()
    maps = [detect(one, photograph, resolution=RESOLUTION, folder=args.annotators) for one in DETECTORS]
    seconds = (time.perf_counter() - start) / len(DETECTORS)
    row = np.hstack([photograph, *maps])
    small = cv2.resize(row, None, fx=SHOWN, fy=SHOWN, interpolation=cv2.INTER_AREA)
    _, png = cv2.imencode(".png", small[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    path = args.out / f"hed_{name}.png"
    with atomic_write(path) as partial:
        partial.write_bytes(png.tobytes())
    near = near_canny(maps[0][:, :, 0], photograph)
    return f"{path}: {near:.1%} of the strongest {STRONGEST:.0%} near Canny's edges, {seconds:.1f} s a map"


if __name__ == "__main__":
    raise SystemExit(main())
