"""A drawing, or a photograph turned into one, as white lines on black: every pixel 0 or 255.

`annotate` reads a drawing: ink of any colour on paper, dark on light or light on dark, from a canvas, a file
with transparency or a camera. `annotate_xdog` draws a photograph (the published demo's difference of
gaussians, after Winnemöller et al. 2012, "XDoG"). A drawing is thresholded at its own size and only then
brought down: averaging first, as for photographs, turns a 1-pixel line on 512 pixels into a quarter-grey one
on 128 and loses it.
"""

import logging

import cv2
import numpy as np

from annotator.detector import Param
from annotator.util import HWC3, RGBA, blend_over, check_image, flatten_map, resize_image, target_size

log = logging.getLogger(__name__)

# Paper and polarity are judged on a small copy: lines are thin there, uneven light is as uneven as before.
OVERVIEW_SIDE = 128
GRAIN_WINDOW = 5  # pixels of the small copy: grain would pass for brighter paper
PAPER_WINDOW = 4  # there is paper within a quarter of the short side, so no line is ever taken for paper
CANVAS_FLOOR = 0.5  # what is darker than half of the paper is ink however large: the published threshold
SHADOW_FLOOR = 0.25  # a photograph is brightened in the shade, but not more than four times: grain grows too
MIN_CONTRAST = 24  # of 255: about five times the grain of an ordinary photograph
INK_PERCENTILE = 90  # of all contrast above it: the darkness of the pen, safe from a few black specks
INK_SHARE = 0.4  # of that: an antialiased line between two pixels leaves half of the ink in each
CLEAR_MAJORITY = 2.0  # lines of one polarity must outweigh the other this many times before they decide
GRAIN_BLUR = 1000  # a photograph of 1000 pixels is smoothed by 1 pixel
MIN_GRAIN_BLUR = 0.8  # pixels; halves the grain of a single pixel
BRIGHTEST = 95  # percentile of the paper that counts as its brightest part
SPECK_SHARE = 64  # in a photograph, spots under this part of the short side are dirt, not ink
XDOG_SIGMAS = 0.5, 5.0  # published
XDOG_THRESHOLD = 32  # published
LOOK, DARK, LIGHT = None, True, False
DRAWING_PARAMS = {
    "invert": Param(LOOK, choices=(LOOK, DARK, LIGHT), help="whether lines are dark on light paper")
}
XDOG_PARAMS = {"threshold": Param(XDOG_THRESHOLD, 1, 255, 1, "lower draws more")}


def annotate(image: np.ndarray, *, resolution: int, invert: bool | None = None) -> np.ndarray:
    """A drawing, uint8 [H W], [H W 3] or [H W 4], as white lines on black: uint8 [H' W' 3], 0 or 255.

    invert: True says dark lines on light paper, False says light lines on dark paper, None looks. Lines of
    one pixel survive any shrinking and keep their connections. An image without lines gives a black map and
    a warning.
    """
    image = check_image(image)
    size = target_size(*image.shape[:2], resolution)
    drawing = _lay_on_paper(image, invert)
    if not (_has_dark_lines(drawing) if invert is None else invert):
        drawing = 255 - drawing
    lines = _find_ink(drawing, size)
    if not lines.any():
        log.warning("the drawing shows no lines: the control map is black and will not steer the picture")
    return HWC3(lines)


def annotate_xdog(image: np.ndarray, *, resolution: int, threshold: int = XDOG_THRESHOLD) -> np.ndarray:
    """The dark strokes of a photograph as white on black: uint8 [H' W' 3], 0 or 255.

    A pixel is a stroke where all channels are darker than their surroundings by more than half of `threshold`
    (1..255; lower draws more).
    """
    if not 1 <= threshold <= 255:
        raise ValueError(f"threshold={threshold}: XDoG takes 1 to 255, {XDOG_THRESHOLD} is usual")
    photo = resize_image(HWC3(image), resolution).astype(np.float32)
    fine, coarse = (cv2.GaussianBlur(photo, (0, 0), sigma) for sigma in XDOG_SIGMAS)
    darker = (coarse - fine).min(axis=2)  # [H' W']
    return HWC3(np.where(darker > threshold // 2, 255, 0).astype(np.uint8))


def _lay_on_paper(image: np.ndarray, invert: bool | None) -> np.ndarray:
    """RGB of the drawing; transparent parts become paper, by what is seen of the lines or of the paper."""
    if image.shape[2] == RGBA and invert is not None:
        return blend_over(image, 255 if invert else 0)
    return flatten_map(image)


def _has_dark_lines(drawing: np.ndarray) -> bool:
    """Whether the thin parts of the image are darker than what surrounds them."""
    grey = _overview(drawing).mean(axis=2).astype(np.uint8)
    surroundings = cv2.medianBlur(grey, _odd(min(grey.shape) // PAPER_WINDOW))
    difference = grey.astype(float) - surroundings
    dark, light = (np.square(np.clip(d, 0, None)).sum() for d in (-difference, difference))
    if max(dark, light) > CLEAR_MAJORITY * min(dark, light):
        return bool(dark > light)
    frame = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    middle = 127.0
    if np.ptp(grey) > MIN_CONTRAST:
        middle, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_OTSU)
    return bool(np.median(frame) > middle)


def _find_ink(drawing: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Dark lines on light paper as uint8 0 or 255 at `size` (height, width)."""
    photographed = _has_grain(drawing)
    short_side = min(drawing.shape[:2])
    if photographed:
        drawing = cv2.GaussianBlur(drawing, (0, 0), max(short_side / GRAIN_BLUR, MIN_GRAIN_BLUR))
    paper, light = _paper(drawing, photographed)
    contrast = cv2.divide(cv2.subtract(paper, drawing), light, scale=255).max(axis=2)  # [H W]
    may_be_ink = contrast[contrast > MIN_CONTRAST]
    if not may_be_ink.size:
        return np.zeros(size, np.uint8)
    threshold = max(MIN_CONTRAST, INK_SHARE * np.percentile(may_be_ink, INK_PERCENTILE))
    height, width = (max(pair) for pair in zip(contrast.shape, size, strict=True))
    lines = cv2.resize(contrast, (width, height), interpolation=cv2.INTER_LINEAR) > threshold
    if photographed:
        lines = _without_specks(lines, short_side / SPECK_SHARE)
    return shrink_lines(lines.astype(np.uint8) * 255, size)


def shrink_lines(lines: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The brightest pixel of each cell: uint8 [H W] or [H W c] shrunk to `size` (height, width).

    The cells cut the image without overlap, so no line and no connection is lost and none grows by more
    than a cell.
    """
    for axis, (old, new) in enumerate(zip(lines.shape[:2], size, strict=True)):
        if new != old:
            lines = np.maximum.reduceat(lines, np.arange(new) * old // new, axis=axis)
    return lines


def _paper(drawing: np.ndarray, photographed: bool) -> tuple[np.ndarray, np.ndarray]:
    """The paper behind each pixel, uint8 like `drawing`, and the light by which ink is to be judged there."""
    small = cv2.medianBlur(_overview(drawing), GRAIN_WINDOW)
    window = _odd(min(small.shape[:2]) // PAPER_WINDOW)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (window, window))
    # Light goes on falling beyond the edge; else a dim corner would pass for ink on the paper before it.
    border = window // 2
    margins = (border, border), (border, border), (0, 0)
    wide = np.pad(small.astype(int), margins, "reflect", reflect_type="odd").clip(0, 255).astype(np.uint8)
    paper = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, kernel)
    paper = paper[border:-border, border:-border]
    brightest = np.percentile(paper, BRIGHTEST, axis=(0, 1))  # [3]
    light = np.maximum(paper, brightest * (SHADOW_FLOOR if photographed else CANVAS_FLOOR)).clip(1)
    paper, light = (
        cv2.resize(x.astype(np.uint8), drawing.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        for x in (paper, light)
    )
    return (paper if photographed else light), light


def _overview(drawing: np.ndarray) -> np.ndarray:
    height, width = drawing.shape[:2]
    scale = min(1.0, OVERVIEW_SIDE / min(height, width))
    return cv2.resize(drawing, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def _has_grain(drawing: np.ndarray) -> bool:
    """Whether an ordinary pixel differs from its neighbours, as in photographs and never on a canvas."""
    grey = cv2.cvtColor(drawing, cv2.COLOR_RGB2GRAY)
    return bool(np.median(cv2.absdiff(grey, cv2.medianBlur(grey, 3))) >= 1)


def _without_specks(lines: np.ndarray, smallest: float) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(lines.astype(np.uint8), connectivity=8)
    longest = np.maximum(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    return lines & (longest >= smallest)[labels]


def _odd(side: int) -> int:
    return max(3, side | 1)
