"""Pictures as data URLs, the form in which a browser hands over a drawing; anybody may have written one."""

from __future__ import annotations

import base64
import binascii
import re
from io import BytesIO

import numpy as np
from PIL import Image

from ldm.image import decode_image

MAX_CHARACTERS = 28_000_000  # of base64: 20 MB of picture, what an upload may have too
MAX_PIXELS = 4_000_000
HEAD = re.compile(r"data:image/(?:png|jpeg|webp);base64,")


def decode_data_url(value: object, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture in a data URL: uint8 [H W 3], or [H W 4] where something is transparent.

    ValueError in one sentence, which calls it `name`, for what is no PNG, JPEG or WebP within limits.
    """
    head = HEAD.match(value) if isinstance(value, str) else None
    if head is None:
        raise ValueError(f"{name} is no picture: give a data URL of a PNG, JPEG or WebP file, in base64")
    if len(value) > MAX_CHARACTERS:
        raise ValueError(f"{name} is {len(value):,} characters long: at most {MAX_CHARACTERS:,} are taken")
    try:
        data = base64.b64decode(value[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is no picture: what follows 'base64,' is not base64") from error
    return decode_image(data, name, max_pixels)


def png_data_url(image: np.ndarray) -> str:
    """A picture, uint8 [H W], [H W 3] or [H W 4], as the data URL of a PNG."""
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
