"""Folders of pictures, side by side: which belongs to which, and what makes them incomparable.

Only headers are read here. Pictures of several folders belong together by their names without suffix; prompts
and controls are those that a picture of ours carries, or what the command line says.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from common.flags import flag
from common.hashing import sha256_of
from eval.metrics.metric import Role
from eval.pictures import NOTHING, Case, ImageFile, Pictures
from ldm.image import DAMAGE, IMAGE_SUFFIXES, read_image

QUOTED = 3  # names in a message
ORIENTATION, SIDEWAYS = 274, (5, 6, 7, 8)  # EXIF: width and height change places
PROMPT_COLUMNS, FILE_COLUMNS = ("prompt", "text"), ("target", "image", "file_name")


@dataclass(frozen=True)
class Folders:
    """What is compared with what."""

    pictures: Path = flag(Path(), "folder of pictures", "pictures")
    truth: Path | None = flag(None, "folder of pictures to compare with", "truth", nargs="?")
    maps: Path | None = flag(None, "folder of the control maps that the pictures were made from")
    control: str | None = flag(None, "detector that made the maps (default: what the pictures' requests say)")
    prompts: Path | None = flag(
        None, "JSON lines of prompt and target or file_name (default: what the pictures' requests say)"
    )
    resize: bool = flag(False, "bring pictures of another size to that of their truth")
    skip_corrupt: bool = flag(False, "leave out pictures that cannot be read, and count them")


def read_pictures(folders: Folders) -> Pictures:
    """The pictures of some folders, put together by name.

    ValueError or FileNotFoundError in one sentence for a folder without pictures or one that cannot be read;
    what does not pair is said in `lacking`.
    """
    roles = {"truth": folders.truth, "map": folders.maps}
    places = {"picture": folders.pictures} | {role: place for role, place in roles.items() if place}
    sides, corrupt = {}, set()
    for role, place in places.items():
        sides[role], bad = _list_images(place, folders.skip_corrupt)
        corrupt |= bad
    stems = {path.stem for path in corrupt}  # their partners have nothing to be compared with
    sides = {role: [one for one in side if one.stem not in stems] for role, side in sides.items()}
    for role, side in sides.items():
        if not side:
            raise ValueError(f"{places[role]} has no picture that can be read")
    images = sides.pop("picture")
    prompts = _read_prompts(folders.prompts) if folders.prompts else {}
    cases = [_case(one, folders, prompts) for one in images]
    lacking: dict[Role, str] = _unsaid(cases)
    for role, place in roles.items():
        if why := _unpaired(role, folders.pictures, place, images, sides.get(role, ())):
            lacking[role] = why
            continue
        partners = {one.stem: one for one in sides[role]}
        cases = [replace(case, **{role: partners[case.image.stem]}) for case in cases]
    if "truth" not in lacking and not folders.resize and (why := _unequal(cases)):
        lacking["truth"] = why
    return Pictures(tuple(cases), tuple(map(Case, sides.get("truth", ()))), lacking, len(corrupt))


def _list_images(folder: Path, skip_corrupt: bool) -> tuple[list[ImageFile], set[Path]]:
    """The pictures of a folder by name, hidden ones aside, and those that were left out."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: name one of pictures")
    paths = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES)
    paths = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    if not paths:
        raise ValueError(f"{folder} has no pictures: looked for {' '.join(IMAGE_SUFFIXES)}")
    found, corrupt = [], set()
    for path in tqdm(paths, f"reading {folder.name}", unit="picture", delay=2, leave=False, disable=None):
        try:
            if skip_corrupt:
                read_image(path)
            found.append(_header(path))
        except ValueError as error:
            if not skip_corrupt:
                raise ValueError(f"{error}; --skip-corrupt leaves it out") from None
            corrupt.add(path)
    return found, corrupt


def _header(path: Path) -> ImageFile:
    try:
        with Image.open(path) as image:
            size, kind, text = image.size, image.format or "", image.info.get("request")
            # A PNG without it would be decoded to its end, as it might come there.
            told = image.format != "PNG" or "exif" in image.info
            if told and image.getexif().get(ORIENTATION) in SIDEWAYS:
                size = size[::-1]
    except DAMAGE:
        read_image(path)  # says in one sentence what is wrong
        raise
    try:
        request = json.loads(text) if text else {}
    except (TypeError, ValueError):
        request = {}
    return ImageFile(path, kind, size, request if isinstance(request, dict) else {}, sha256_of(path))


def _case(image: ImageFile, folders: Folders, prompts: dict[str, str]) -> Case:
    prompt = prompts.get(image.stem, image.request.get("prompt"))
    control = (folders.control, {}) if folders.control else _asked_control(image.request)
    return Case(image, prompt=prompt if isinstance(prompt, str) else None, control=control)


def _asked_control(request: dict) -> tuple[str, dict] | None:
    """The first detector in a picture's request, else its control, and params."""
    try:
        first = request["controls"][0]
        return str(first.get("detector") or first["control"]), dict(first.get("params") or {})
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _unpaired(
    role: str, folder: Path, other: Path | None, images: Sequence[ImageFile], partners: Sequence[ImageFile]
) -> str | None:
    """Why the pictures of two folders do not pair, in one sentence."""
    if other is None:
        return NOTHING[role]
    for place, side in ((folder, images), (other, partners)):
        if twice := [stem for stem, count in Counter(one.stem for one in side).items() if count > 1]:
            names = ", ".join(twice[:QUOTED])
            return f"{place} has several pictures called {names}: names without suffix must differ"
    here, there = {one.stem for one in images}, {one.stem for one in partners}
    if alone := sorted(here ^ there if role == "truth" else here - there):
        words = f"{len(alone):,} names of {folder} and {other} have no partner"
        return f"{words}, such as {', '.join(alone[:QUOTED])}: give folders of equal names"
    return None


def _unequal(cases: Sequence[Case]) -> str | None:
    differ = [case for case in cases if case.image.size != case.truth.size]
    if not differ:
        return None
    one, (width, height), (other_width, other_height) = differ[0], differ[0].image.size, differ[0].truth.size
    words = f"{one.image.path} is {width}x{height} and {one.truth.path} {other_width}x{other_height}"
    count = f"{len(differ):,} of {len(cases):,} pairs differ so"
    return f"{words}, {count}: --resize brings pictures to the truth's size"


def _unsaid(cases: Iterable[Case]) -> dict[Role, str]:
    without = [case.image.path for case in cases if case.prompt is None]
    if not without:
        return {}
    words = f"{len(without):,} pictures carry no prompt, such as {without[0]}"
    return {"prompt": f"{words}: give --prompts FILE, JSON lines of prompt and target"}


def _read_prompts(path: Path) -> dict[str, str]:
    """Picture's name without suffix -> prompt, of JSON lines."""
    try:
        entries = [
            json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()
        ]
        return {Path(_cell(entry, FILE_COLUMNS)).stem: _cell(entry, PROMPT_COLUMNS) for entry in entries}
    except (ValueError, LookupError, TypeError, StopIteration):
        columns = f"{' or '.join(PROMPT_COLUMNS)} and {' or '.join(FILE_COLUMNS)}"
        raise ValueError(f"{path} is no list of prompts: a line is a JSON object with {columns}") from None


def _cell(entry: dict, columns: Sequence[str]) -> str:
    return str(entry[next(column for column in columns if column in entry)])
