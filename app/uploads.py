"""Pictures from outside: files that were uploaded to this server, read with limits. Nothing is trusted.

A client can send any path and any URL where the page would send what was uploaded; only files in the upload
folder of this process are opened, and their size is known before any pixel is decoded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.shell import printable
from ldm.image import decode_image

MEGAPIXEL = 10**6
MAX_PIXELS = 4 * MEGAPIXEL  # a larger picture is shrunk to that: a phone's has 12
MAX_UPLOAD_PIXELS = 64 * MEGAPIXEL  # beyond, decoding alone would take a quarter of a gigabyte
MAX_UPLOAD_BYTES = 20 * 2**20
MAX_DEPTH = 12  # of what a client may send as JSON
MAX_ITEMS = 20_000  # values in it
MAX_TEXT = 40 * 2**20  # characters in it, drawings included


@dataclass(frozen=True)
class Upload:
    """A picture from outside, uint8 [H W 3 or 4]. name: as its owner calls it; digest: sha256 of the file.

    shrunk: it had more than `MAX_PIXELS`.
    """

    image: np.ndarray
    name: str
    digest: str
    shrunk: bool = False


def check_payload(data: Any, folder: Path) -> None:
    """ValueError in one sentence for what a client sent, if it is too much or names files not uploaded.

    data: parsed JSON. Walks all of it, since any component may be sent a file in place of its value.
    """
    left, text = MAX_ITEMS, MAX_TEXT
    stack = [(data, 0)]
    while stack:
        value, depth = stack.pop()
        left -= 1
        if depth > MAX_DEPTH or left < 0:
            raise ValueError("the request holds too many values: send fewer, or what the page sends")
        if isinstance(value, str):
            text -= len(value)
        elif isinstance(value, dict):
            if "path" in value and ("meta" in value or "url" in value or "orig_name" in value):
                uploaded_file(value, folder)
            stack += ((inner, depth + 1) for pair in value.items() for inner in pair)
        elif isinstance(value, list | tuple):
            stack += ((inner, depth + 1) for inner in value)
        if text < 0:
            raise ValueError("the request is too long: send pictures as uploads")


def uploaded_file(value: Any, folder: Path) -> Path:
    """The file that a client names, if it lies in `folder`, where this process puts what is uploaded.

    value: a path, or Gradio's dictionary of a file. ValueError for everything else.
    """
    path = value.get("path") if isinstance(value, dict) else value
    words = "a picture must be uploaded to this server first (gradio_client: handle_file)"
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(words)
    if "://" in path or path.startswith("data:"):
        raise ValueError(f"{printable(path, 60)}: nothing is fetched from elsewhere; {words}")
    try:
        file = Path(path).resolve()
        inside = file.is_relative_to(folder.resolve()) and file.is_file()
    except (OSError, ValueError, RuntimeError):
        inside = False
    if not inside:
        raise ValueError(f"{printable(Path(path).name, 60)} was not uploaded here: {words}")
    return file


def read_upload(value: Any, folder: Path) -> Upload | None:
    """The picture in an uploaded file, None where there is none. ValueError in one sentence."""
    if value is None or value == "":
        return None
    file = uploaded_file(value, folder)
    name = printable((value.get("orig_name") if isinstance(value, dict) else None) or file.name, 80)
    if file.stat().st_size > MAX_UPLOAD_BYTES:
        raise ValueError(f"{name} has more than {MAX_UPLOAD_BYTES >> 20} MiB: save it smaller")
    data = file.read_bytes()
    image = decode_image(data, name, MAX_UPLOAD_PIXELS)
    shrunk = image.shape[0] * image.shape[1] > MAX_PIXELS
    digest = hashlib.sha256(data).hexdigest()
    return Upload(shrink(image, MAX_PIXELS) if shrunk else image, name, digest, shrunk)


def shrink(image: np.ndarray, most: int) -> np.ndarray:
    """The image with at most `most` pixels, averaged: uint8 [H' W' c]."""
    height, width = image.shape[:2]
    ratio = min(1.0, (most / (height * width)) ** 0.5)
    size = (int(width * ratio), int(height * ratio))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
