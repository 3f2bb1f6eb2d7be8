"""What a run leaves behind: images that can be made again, and the places they go to.

A PNG carries three texts: `request` (of this one image), `seed`, and `source`, the rest that its bytes
depend on. No time and no memory figure is among them: the same request gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from cldm.request import Request
from ldm.image import IMAGE_SUFFIXES, read_png_text, write_png


@dataclass(frozen=True)
class Provenance:
    """What an image depends on besides its request, as the user wrote it: paths stay relative.

    config: None for the shipped tiny model. quantized: a file in place of weights. branches: files of further
    control branches. annotators: folder of the detectors' weights, None for models/annotators. loras: each as
    FILE:WEIGHT. digests: path -> sha256 of each image that went in.
    """

    image: tuple[str, ...] = ()
    init: str | None = None
    mask: str | None = None
    config: str | None = None
    weights: tuple[str, ...] = ()
    quantized: str | None = None
    branches: tuple[str, ...] = ()
    annotators: str | None = None
    loras: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    save_memory: bool = False
    cuda_graphs: bool = False
    digests: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line, the same for the same provenance."""
        data = asdict(self)
        if self.annotators is None:  # as images were written before there was a choice
            del data["annotators"]
        return json.dumps(data, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """The provenance that `to_json` wrote; TypeError or ValueError for any other text."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise TypeError(f"the source must be a JSON object, got {text[:20]}")
        return cls(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        )


def digests(paths: Iterable[str | Path | None]) -> dict[str, str]:
    """sha256 of each file by its path; None entries are left out. OSError as `open`."""
    files = [Path(path) for path in paths if path is not None]
    return {path.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_image(
    path: Path, image: np.ndarray, request: Request, provenance: Provenance,
    more: Mapping[str, str] | None = None,
) -> Path:  # fmt: skip
    """Write uint8 [H W 3] with its texts and `more`, whole or not at all. Errors as `ldm.image.write_png`."""
    text = {"request": request.to_json(), "seed": str(request.seed), "source": provenance.to_json()}
    return write_png(path, image, {**text, **(more or {})})


def load_request(path: str | Path) -> tuple[Request, Provenance]:
    """What the image at `path` was made from; ValueError when it does not say."""
    text = read_png_text(path)
    if "request" not in text or "source" not in text:
        raise ValueError(f"{path} carries no request: only pictures of generate.py can be made again")
    try:
        return Request.from_json(text["request"]), Provenance.from_json(text["source"])
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} carries a request of another version: {error}") from error


def is_one_file(out: Path) -> bool:
    """Whether `out` names an image and not a folder."""
    return out.suffix.lower() in IMAGE_SUFFIXES


def check_out(out: Path, inputs: Iterable[Path], count: int) -> None:
    """ValueError or OSError unless `count` images can go to `out`: a folder, or a .png for a single one.

    Makes nothing: a run that fails before its first image leaves no folder behind.
    """
    if is_one_file(out):
        if out.suffix.lower() != ".png":
            raise ValueError(f"--out {out}: only PNG carries a picture's request, name it {out.stem}.png")
        if count > 1:
            raise ValueError(f"--out {out} is one file for {count} pictures: name a folder")
        if out.resolve() in {path.resolve() for path in inputs}:
            raise ValueError(f"--out {out} is the picture that goes in: choose another name")
    folder = out.parent if is_one_file(out) else out
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"--out {out}: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"--out {out}: {folder} may not be written to")


def find_place(
    folder: Path, name: str, request: Request, provenance: Provenance
) -> tuple[Path, Request | None]:
    """Where this image belongs in `folder`, and its full request if it lies there already.

    Nothing is ever replaced by another image: `name.png`, or `name_2.png` and so on where that is taken.
    """
    path, number = folder / f"{name}.png", 1
    while path.exists():
        try:
            made, made_from = load_request(path)
        except (OSError, ValueError):  # somebody else's file, or a damaged one: it stays where it is
            pass
        else:
            if made_from == provenance and satisfies(made, request):
                return path, made
        number += 1
        path = folder / f"{name}_{number}.png"
    return path, None


def satisfies(made: Request, asked: Request) -> bool:
    """Whether an image of `made` is what `asked` wants; None in `asked` is a default, any value."""
    pairs = ((getattr(made, name), value) for name, value in vars(asked).items())
    return all(wanted is None or wanted == got for got, wanted in pairs)
