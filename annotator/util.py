"""Image shapes that every annotator shares: three channels, sides that are multiples of 64.

`HWC3` and `resize_image` keep the published names and results, byte for byte. The sizes come from the U-Net:
the VAE divides a side by 8 and the U-Net halves the latent three times more, so a side must be a multiple of
64. Colours are RGB everywhere.
"""

import operator

import cv2
import numpy as np

RGBA = 4  # channels
HALF = 127  # of 255: what is above is light, or to be seen
SIDE_STEP = 64  # 8 (VAE) x 2**3 (three downsamplings of the U-Net)
MAX_RESOLUTION = 4096  # the VAE alone needs tens of gigabytes beyond it
MAX_SIDE = 8192  # of a resized image: a strip of 8 x 20000 at 512 would become 1.3 million pixels long
RIDGE_THRESHOLD, RIDGE_BLUR = 127, 3.0  # published, as the next
PEN_SIDE = 512  # the pen is as wide as published there
PEN_THRESHOLD = 4  # of 255 after the blur: a ridge becomes a stroke of 11 to 15 pixels
_ROW, _FALLING = np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]], np.uint8), np.eye(3, dtype=np.uint8)
DIRECTIONS = _ROW, _ROW.T, _FALLING, np.fliplr(_FALLING)  # the neighbours a ridge is compared with


def check_image(image: np.ndarray, channels: tuple[int, ...] = (1, 3, 4)) -> np.ndarray:
    """`image` as [H W c] with c one of `channels`; a plain [H W] counts as one channel.

    TypeError unless uint8; ValueError for any other shape and for an image without pixels.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"a picture must be a numpy array of uint8 in 0..255, got {got}: convert it first")
    shaped = image[:, :, None] if image.ndim == 2 else image
    if shaped.ndim != 3 or shaped.shape[2] not in channels:
        allowed = " or ".join(str(c) for c in channels)
        raise ValueError(f"a picture must be [height, width, {allowed} channels], got shape {image.shape}")
    if 0 in shaped.shape:
        raise ValueError(f"the picture has no pixels: shape {image.shape}")
    return shaped


def HWC3(x: np.ndarray) -> np.ndarray:
    """Grey, one-channel, RGB or RGBA uint8 as RGB uint8 [H W 3]; transparent pixels show a white ground.

    Three channels come back as they are, not copied. Rounds down, as published.
    """
    x = check_image(x)
    if x.shape[2] == 3:
        return x
    if x.shape[2] == 1:
        return np.repeat(x, 3, axis=2)
    return blend_over(x, 255)


def blend_over(rgba: np.ndarray, ground: int) -> np.ndarray:
    """RGBA uint8 [H W 4] laid over a plain ground of grey level `ground`: uint8 [H W 3], rounded down."""
    alpha = rgba[:, :, 3:].astype(np.float32) / 255.0  # [H W 1]
    mixed = rgba[:, :, :3].astype(np.float32) * alpha + np.float32(ground) * (1.0 - alpha)  # [H W 3]
    return mixed.clip(0, 255).astype(np.uint8)


def flatten_map(drawing: np.ndarray) -> np.ndarray:
    """A drawing or ready-made map, uint8 [H W c], as RGB: what is transparent becomes its paper.

    White lines on nothing are white on black, black ones black on white; a cut-out sheet goes on as it is.
    """
    layers = check_image(drawing)
    visible = layers[:, :, -1] > HALF
    if layers.shape[2] != RGBA or not visible.any():
        return HWC3(drawing)
    light = np.median(layers[visible][:, :3]) > HALF
    is_ink = visible.mean() < 0.5  # mostly transparent: what is visible are the lines, else it is the paper
    return blend_over(layers, 255 if light != is_ink else 0)


def target_size(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Height and width after scaling the short side to `resolution`, each rounded to a multiple of 64.

    ValueError for a resolution outside 64..4096 or an image so long that the result would pass 8192 pixels.
    """
    try:
        resolution = operator.index(resolution)
    except TypeError:
        raise TypeError(f"resolution={resolution!r}: give a whole number of pixels") from None
    if not SIDE_STEP <= resolution <= MAX_RESOLUTION:
        allowed = f"{SIDE_STEP} to {MAX_RESOLUTION} pixels"
        raise ValueError(f"resolution={resolution}: the short side may be {allowed}")
    if min(height, width) < 1:
        raise ValueError(f"the picture has no pixels: {width}x{height}")
    scale = float(resolution) / min(height, width)
    new_height, new_width = (round(float(s) * scale / SIDE_STEP) * SIDE_STEP for s in (height, width))
    if max(new_height, new_width) > MAX_SIDE:
        raise ValueError(
            f"a picture of {width}x{height} would be {new_width}x{new_height} at resolution {resolution}, "
            f"at most {MAX_SIDE} a side is possible: crop it or lower the resolution"
        )
    return new_height, new_width


def resize_image(input_image: np.ndarray, resolution: int) -> np.ndarray:
    """The image with its short side near `resolution` and both sides multiples of 64: uint8 [H' W' c].

    Lanczos when enlarging, area average when shrinking, as published.
    """
    image = check_image(input_image)
    height, width = image.shape[:2]
    new_height, new_width = target_size(height, width, resolution)
    method = cv2.INTER_LANCZOS4 if resolution > min(height, width) else cv2.INTER_AREA
    resized = cv2.resize(image, (new_width, new_height), interpolation=method)
    return resized.reshape(new_height, new_width, -1)  # OpenCV drops a single channel's axis


def nms(x: np.ndarray, t: float, s: float) -> np.ndarray:
    """The ridges of soft edges, one pixel wide: uint8 [H W] 0 or 255 (the published non-maximum suppression).

    x: [H W] in 0..255, smoothed by `s` pixels first. A pixel stays where it is the highest along one of four
    directions and above `t`.
    """
    smooth = cv2.GaussianBlur(x.astype(np.float32), (0, 0), s)
    highest = [cv2.dilate(smooth, np.ascontiguousarray(along)) == smooth for along in DIRECTIONS]
    return np.where(np.any(highest, axis=0) & (smooth > t), 255, 0).astype(np.uint8)


def safe_step(x: np.ndarray, step: int = 2) -> np.ndarray:
    """Values in [0, 1) cut to `step` + 1 levels, so that soft edges hide no picture (published)."""
    return (x.astype(np.float32) * float(step + 1)).astype(np.int32).astype(np.float32) / float(step)


def scribbled(edges: np.ndarray) -> np.ndarray:
    """Soft edges, uint8 [H W], as strokes of a pen: uint8 [H W], 0 or 255 (the published "fake scribble").

    A map with a short side below 512 has a finer pen, so that a scribble looks the same at every size.
    """
    blur = RIDGE_BLUR * min(1, min(edges.shape) / PEN_SIDE)
    ridges = nms(edges, RIDGE_THRESHOLD, blur)
    return np.where(cv2.GaussianBlur(ridges, (0, 0), blur) > PEN_THRESHOLD, 255, 0).astype(np.uint8)
