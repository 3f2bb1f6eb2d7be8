"""The rows of a training set, whatever form it is published in: image, control image and text of each.

Three forms: Fill50k's `prompt.json` (one JSON object a line; source is the control image), JSON lines with
column names of the user's choice, and two folders of images of equal names with a text file for each.
Nothing is opened here but the lists.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.settings import Columns

LISTS = ("prompt.json", "metadata.jsonl", "train.jsonl")  # looked for in a folder, in this order
# Where the user names no column: Fill50k's names, then diffusers'.
IMAGE, HINT, TEXT = ("target", "image"), ("source", "conditioning_image"), ("prompt", "text")
IMAGE_FOLDERS = ("target", "image", "images")  # the first that is there
HINT_FOLDERS = ("source", "conditioning_image", "conditioning_images", "control", "hint")
NO_IMAGES = (".txt", ".json", ".jsonl", ".caption")  # what else may lie in a folder of images
FORMS = (
    "prompt.json or metadata.jsonl with one JSON object a line, or folders target/ and source/ of images "
    "with a NAME.txt beside each target"
)


@dataclass(frozen=True)
class TrainingPair:
    """One row. texts: one or more captions; place: where the row is written, for messages."""

    image: Path  # what the model is to draw
    hint: Path  # the control image it is to draw from
    texts: tuple[str, ...]
    place: str


def read_rows(data: Path, columns: Columns | None = None) -> list[TrainingPair]:
    """The rows of a folder or of a list file, in its order; no image is opened.

    Raises FileNotFoundError, or ValueError naming the row that cannot be understood.
    """
    columns, data = columns or Columns(), Path(data)
    if not data.exists():
        raise FileNotFoundError(f"no training data {data}: give a folder with {FORMS}")
    path = data
    if data.is_dir():
        path = next((data / name for name in LISTS if (data / name).is_file()), None)
        path = path or next(iter(sorted(data.glob("*.jsonl"))), None)
    rows = list(_listed(path, columns) if path else _paired(data))
    if not rows:
        raise ValueError(f"{path or data} has no rows: write one JSON object a line, one for each pair")
    return rows


def missing_files(rows: list[TrainingPair]) -> list[str]:
    """A sentence for each row whose image or control image is not there."""
    named = ((row, path) for row in rows for path in (row.image, row.hint))
    return [f"{row.place}: there is no file {path}" for row, path in named if not path.is_file()]


def _listed(path: Path, columns: Columns) -> Iterator[TrainingPair]:
    for number, entry in _entries(path):
        place = f"{path} row {number}"
        if not isinstance(entry, dict):
            raise ValueError(f"{place} is no JSON object but {json.dumps(entry)[:40]}")
        image, hint = (
            _place(path.parent, str(_cell(entry, given, usual, place)))
            for given, usual in ((columns.image, IMAGE), (columns.hint, HINT))
        )
        yield TrainingPair(image, hint, _texts(_cell(entry, columns.text, TEXT, place), place), place)


def _place(folder: Path, name: str) -> Path:
    """The file of a row; one that Windows wrote has its folders apart by backslashes."""
    path = folder / name
    return path if "\\" not in name or path.exists() else folder / name.replace("\\", "/")


def _entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Row numbers from 1 and what each row holds: a line each, or the items of one JSON list."""
    text = _read_text(path)
    if text.lstrip().startswith("["):
        yield from enumerate(_json(text, f"{path}"), start=1)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, _json(line, f"{path} row {number}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows' editors put a mark in front
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8: save it as UTF-8") from None


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is no JSON: {error.msg} at character {error.pos}") from None


def _cell(entry: Mapping[str, Any], given: str | None, usual: tuple[str, ...], place: str) -> Any:
    wanted = (given,) if given else usual
    name = next((name for name in wanted if name in entry), None)
    if name is None:
        words = f"only {', '.join(entry)}: name the column by a flag"
        raise ValueError(f"{place} has no {' or '.join(wanted)}, {words}")
    return entry[name]


def _texts(cell: Any, place: str) -> tuple[str, ...]:
    texts = tuple(cell) if isinstance(cell, list) else (cell,)
    if not texts or not all(isinstance(text, str) for text in texts):
        got = json.dumps(cell)[:40]
        raise ValueError(f"{place}: the text must be a string or a list of strings, got {got}")
    return texts


def _paired(folder: Path) -> Iterator[TrainingPair]:
    images, hints = (
        next((folder / name for name in names if (folder / name).is_dir()), None)
        for names in (IMAGE_FOLDERS, HINT_FOLDERS)
    )
    if images is None or hints is None:
        raise ValueError(f"{folder} is no training data: it needs {FORMS}")
    partners = {path.stem: path for path in sorted(hints.iterdir()) if _is_image(path)}
    for path in sorted(images.iterdir()):
        if not _is_image(path):
            continue
        texts = [path.with_suffix(".txt"), folder / "captions" / f"{path.stem}.txt"]
        caption = next((one for one in texts if one.is_file()), None)
        if path.stem not in partners or caption is None:
            lacks = "caption" if path.stem in partners else "control image"
            where = texts[0] if path.stem in partners else hints / path.name
            raise ValueError(f"{path} has no {lacks}: there is no {where}")
        yield TrainingPair(path, partners[path.stem], (_read_text(caption).strip(),), str(path))


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() not in NO_IMAGES and not path.name.startswith(".")
