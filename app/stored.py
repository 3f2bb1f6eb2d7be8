"""A picture that was made here, read again: its request, and the drawings that went into it.

The file comes from a browser, so its texts may say anything; they go through the same checks as a call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.form import DRAWING, EXAMPLE, UPLOAD
from app.inputs import EXAMPLES, drawn, example, uploaded
from app.outputs import DRAWINGS
from app.provenance import Provenance
from app.request_data import request_of
from app.uploads import MAX_UPLOAD_BYTES, MAX_UPLOAD_PIXELS, uploaded_file
from cldm.request import Request
from ldm.image import read_png_text


@dataclass(frozen=True)
class Stored:
    """What a picture says of itself. drawings: data URLs by the names that `source` has."""

    request: Request
    source: Provenance
    drawings: Mapping[str, str]


@dataclass(frozen=True)
class Found:
    """Where a picture of a stored request is now: drawn, an example, or to be uploaded again.

    missing: its name, where it has to be; kept: what is uploaded already is that picture.
    """

    source: str
    value: str | None = None
    missing: str = ""
    kept: bool = False


def read_stored(value: Any, folder: Path) -> Stored:
    """What the uploaded picture says; ValueError in one sentence when it says nothing, or nonsense."""
    file = uploaded_file(value, folder)
    if file.stat().st_size > MAX_UPLOAD_BYTES:
        raise ValueError(f"this file has more than {MAX_UPLOAD_BYTES >> 20} MiB: it was not made here")
    try:
        text = read_png_text(file, MAX_UPLOAD_PIXELS)
    except ValueError as error:
        raise ValueError(str(error).replace(str(file), "this file")) from None
    if "request" not in text or "source" not in text:
        raise ValueError("this picture carries no request: drop one that was made here or by generate.py")
    try:
        request, source = json.loads(text["request"]), Provenance.from_json(text["source"])
        drawings = json.loads(text.get(DRAWINGS, "{}"))
        fits = all(isinstance(one, str) for one in (*source.image, *source.digests))
    except (TypeError, ValueError, AttributeError, RecursionError):
        fits = False
    if not fits or not isinstance(drawings, dict):
        raise ValueError("the request in this picture is damaged, or of another version")
    return Stored(request_of(request), source, drawings)


def find_picture(stored: Stored, name: str, current: Any, folder: Path) -> Found:
    """Where the picture `name` of a stored request is. current: what is uploaded in its place now."""
    digest = stored.source.digests.get(name)
    if name in stored.drawings:
        try:
            given = drawn(stored.drawings[name], "in it")
        except ValueError:  # whoever wrote the file drew nothing that is a picture
            given = None
        if given is not None and given.digest == digest:
            return Found(DRAWING, given.drawing)
    stem = Path(name).stem
    if stem in EXAMPLES and example(stem).digest == digest:
        return Found(EXAMPLE, stem)
    try:
        there = uploaded(current, folder)
    except ValueError:
        there = None
    if there is not None and there.digest == digest:
        return Found(UPLOAD, kept=True)
    return Found(UPLOAD, missing=name)
