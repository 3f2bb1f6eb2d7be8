"""sha256 of files of any size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

PIECE = 1 << 22


def sha256_of(path: Path, on_bytes: Callable[[int], object] = lambda _: None) -> str:
    """64 hexadecimal digits. on_bytes: hears the size of each piece that was read. OSError as `open`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            on_bytes(len(piece))
    return digest.hexdigest()
