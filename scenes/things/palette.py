"""The colours that things and backgrounds are named by: few, flat, and far enough apart to be told by eye."""

from __future__ import annotations

import numpy as np

from scenes.colours import RGB, contrast

_COLOURS: dict[str, tuple[RGB, str]] = {  # and their Korean names
    "red": ((224, 49, 49), "빨간"),
    "orange": ((247, 140, 30), "주황"),
    "yellow": ((252, 211, 60), "노란"),
    "green": ((55, 160, 75), "초록"),
    "blue": ((40, 100, 220), "파란"),
    "purple": ((135, 70, 185), "보라"),
    "pink": ((245, 130, 175), "분홍"),
    "brown": ((130, 85, 50), "갈색"),
    "black": ((35, 35, 40), "검은"),
    "white": ((255, 255, 255), "하얀"),
    "gray": ((140, 145, 150), "회색"),
    "sky blue": ((130, 200, 245), "하늘색"),
    "navy": ((30, 45, 105), "남색"),
    "turquoise": ((40, 190, 180), "청록"),
    "beige": ((240, 225, 190), "베이지"),
    "light green": ((165, 220, 120), "연두"),
}
PALETTE = {name: rgb for name, (rgb, _) in _COLOURS.items()}
KOREAN = {korean: name for name, (_, korean) in _COLOURS.items()}
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
