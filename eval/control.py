"""Does an image obey its control and its prompt: where is it filled, with which colours, in which shape.

Made for images of one filled shape on a plain background (Fill50k's task); the prompt names both colours.
"""

from collections.abc import Iterable, Mapping

import cv2
import numpy as np

RGB = tuple[int, int, int]

MIN_DISTANCE = 20.0  # Euclidean, of 441: two colours closer than this are one plain image with noise
# Of a mask that is compared with known shapes.
SHAPE_SIDE = 48  # it is scaled to a square of so many pixels
SHAPE_AREA = 0.2  # and to this share of the square: what is long and thin must still fit inside
MIN_SHAPE_IOU = 0.8  # with less than this it is none of the shapes


def filled_mask(image: np.ndarray, fill: RGB, background: RGB) -> np.ndarray:
    """Estimate which pixels of `image` (uint8 [H W 3]) are filled: bool [H W].

    The image is cut into its own two colours, whatever they are; the named ones only decide which of the
    two is the fill. So a fill of the wrong tint still counts as filled (its colour is judged by
    `colour_error`), fill and background that have changed places give the opposite mask, and a plain image
    gives an empty one.
    """
    pixels = image.reshape(-1, 3).astype(np.float64)
    upper, plain = _upper_part(pixels), np.zeros(image.shape[:2], bool)
    if not upper.any():
        return plain
    low, high = pixels[~upper].mean(axis=0), pixels[upper].mean(axis=0)
    if np.linalg.norm(high - low) < MIN_DISTANCE:
        return plain
    found, named = np.stack([high, low]), np.array([fill, background])
    as_named, swapped = (np.linalg.norm(pair - named, axis=1).sum() for pair in (found, found[::-1]))
    return (upper if as_named <= swapped else ~upper).reshape(image.shape[:2])


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks, bool [H W]: 0 to 1, and 1 when both are empty."""
    if first.shape != second.shape:
        raise ValueError(f"masks of {first.shape} and {second.shape}: compare masks of one size")
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 1.0


def colour_error(image: np.ndarray, region: np.ndarray, colour: RGB) -> np.ndarray:
    """Mean absolute difference from `colour` in a region (bool [H W]) of uint8 [H W 3]: float [3], 0 to 255.

    One value per channel. The region's edge, where the two colours blend, is left out if anything remains
    without it; the image's border is no edge.
    """
    if not region.any():
        raise ValueError("the region is empty: there is no colour to compare")
    core = cv2.erode(region.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    pixels = image[core if core.any() else region].astype(np.float64)
    return np.abs(pixels - np.array(colour)).mean(axis=0)


def normalised(mask: np.ndarray) -> np.ndarray:
    """A mask, bool [H W], moved to the middle and scaled to one area: bool [48 48]. Empty stays empty."""
    area = np.count_nonzero(mask)
    if not area:
        return np.zeros((SHAPE_SIDE, SHAPE_SIDE), bool)
    scale = SHAPE_SIDE * np.sqrt(SHAPE_AREA / area)
    ys, xs = np.nonzero(mask)
    middle = (SHAPE_SIDE - 1) / 2
    move = np.array([[scale, 0, middle - scale * xs.mean()], [0, scale, middle - scale * ys.mean()]])
    return cv2.warpAffine(mask.astype(np.float32), move, (SHAPE_SIDE, SHAPE_SIDE)) > 0.5


class ShapeReader:
    """Names shapes by examples of each, masks bool [H W] of any size and place."""

    def __init__(self, examples: Mapping[str, Iterable[np.ndarray]]) -> None:
        pairs = [(name, normalised(mask).ravel()) for name, masks in examples.items() for mask in masks]
        self._names = [name for name, _ in pairs]
        self._masks = np.stack([mask for _, mask in pairs]).astype(np.float32)  # [n 48 * 48]

    def __call__(self, mask: np.ndarray) -> str | None:
        """The shape that a mask (bool [H W]) shows, None where it resembles no example."""
        shown = normalised(mask).ravel().astype(np.float32)
        both = self._masks @ shown
        ious = both / np.maximum(self._masks.sum(axis=1) + shown.sum() - both, 1)
        best = int(ious.argmax())
        return self._names[best] if ious[best] >= MIN_SHAPE_IOU else None


def _upper_part(pixels: np.ndarray) -> np.ndarray:
    """Cut colours [n 3] in two along the axis on which they differ most: bool [n], all False for one colour.

    The cut is half-way between the means of the two parts that leave the least variance within (Otsu 1979),
    as the blend of two colours at an edge belongs half to each.
    """
    centred = pixels - pixels.mean(axis=0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    values = centred @ axis  # their sum is 0
    ordered = np.sort(values)
    sums, counts = np.cumsum(ordered)[:-1], np.arange(1, len(ordered))
    means_below, means_above = sums / counts, -sums / (len(ordered) - counts)
    best = np.argmax(counts * (len(ordered) - counts) * (means_above - means_below) ** 2)
    return values > (means_below[best] + means_above[best]) / 2
