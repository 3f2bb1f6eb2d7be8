"""The colours that things and backgrounds are named by: few, flat, and far enough apart to be told by eye."""

from __future__ import annotations

import numpy as np

from scenes.colours import RGB, contrast
from scenes.things.words import read_table

PALETTE: dict[str, RGB] = {
    row["colour"]: (int(row["red"]), int(row["green"]), int(row["blue"])) for row in read_table("colours")
}
KOREAN = {row["korean"]: row["colour"] for row in read_table("colours")}
MIN_CONTRAST = 45  # of 255, between a thing's rim and its background: less cannot be seen
UNSAID = (
    "white",
    "sky blue",
)  # the background of prompts that name none: the first that the thing stands out on
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
DARKEST_BODY = 60.0  # of 255: darker bodies would turn every light spot to the colour's own white


def stands_out(rim: RGB, background: str) -> bool:
    """Whether a thing whose border has colour `rim` can be seen on a background of that name."""
    return contrast(rim, PALETTE[background]) >= MIN_CONTRAST


def unsaid_background(rim: RGB) -> str:
    """The background of a thing when nobody says one: white, for white things the sky."""
    return next((name for name in UNSAID if stands_out(rim, name)), UNSAID[-1])


def repaint(pixels: np.ndarray, body: float, colour: str) -> np.ndarray:
    """Pixels [... 3] in shades of a named colour, which luma `body` becomes; darker stays darker.

    uint8 in and out; body: the luma of the thing's largest region, 0 to 255.
    """
    body = min(max(body, DARKEST_BODY), 254.0)
    luma = (pixels @ LUMA)[..., None]
    paint = np.array(PALETTE[colour], np.float32)
    darker = paint * (luma / body)
    lighter = paint + (255 - paint) * ((luma - body) / (255 - body))
    return np.where(luma <= body, darker, lighter).clip(0, 255).astype(np.uint8)
