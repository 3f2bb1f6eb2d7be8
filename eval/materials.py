"""What pictures are made of: inputs with their prompts, from a folder, Fill50k's form, or held-out scenes.

What a model is told lies on disk before the first picture is made, under the name that the picture will have:
`maps/0000.png`, and `truth/0000.png` where a right answer is known.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from app.batch import images_in, prompt_beside

HELD_OUT = "held-out"
LIST = "prompt.json"  # of Fill50k's form: an object a line
DIGITS = 4
MAPS, TRUTH = "maps", "truth"


@dataclass(frozen=True)
class Material:
    """One picture to be made. image: what it is drawn from. is_map: ready-made, for no detector."""

    name: str
    image: Path
    prompt: str
    is_map: bool


def materials(data: str, count: int, seed: int, size: int, out: Path) -> list[Material]:
    """The first `count` of `data`, or as many as there are; maps and truths are laid into `out`.

    size: of held-out scenes. ValueError or FileNotFoundError in one sentence where `data` cannot be used.
    """
    if count < 1:
        raise ValueError(f"count={count}: give 1 or more")
    if data == HELD_OUT:
        return _held_out(count, seed, size, out)
    folder = Path(data)
    if not folder.is_dir():
        raise FileNotFoundError(f"--data {data}: no such folder; or take {HELD_OUT}")
    if (folder / LIST).is_file():
        return list(islice(_pairs(folder, out), count))
    return _pictures(folder, count)


def _held_out(count: int, seed: int, size: int, out: Path) -> list[Material]:
    from eval.fill50k import held_out_scenes
    from ldm.image import write_png
    from scenes.shape_scenes import render

    found = []
    for number, scene in enumerate(held_out_scenes(count, seed)):
        name = _name(number)
        source, target, _ = render(scene, size)
        path = write_png(out / MAPS / f"{name}.png", source)
        write_png(out / TRUTH / f"{name}.png", target)
        found.append(Material(name, path, scene.prompt, is_map=True))
    return found


def _pairs(folder: Path, out: Path) -> Iterator[Material]:
    """Fill50k's form: maps in `source`, right answers in `target`, prompts in the list."""
    lines = (folder / LIST).read_text(encoding="utf-8-sig").splitlines()
    for number, text in enumerate(filter(str.strip, lines)):
        try:
            row = json.loads(text)
            source, target, prompt = folder / row["source"], folder / row["target"], str(row["prompt"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{folder / LIST}:{number + 1}: no object with source, target and prompt"
            ) from None
        name = _name(number)
        paths = [_copied(path, out / kind / name) for path, kind in ((source, MAPS), (target, TRUTH))]
        yield Material(name, paths[0], prompt, is_map=True)


def _pictures(folder: Path, count: int) -> list[Material]:
    images = images_in(folder)[:count]
    prompts = {path: prompt_beside(path) for path in images}
    if missing := [path.name for path, prompt in prompts.items() if prompt is None]:
        raise ValueError(f"no prompt for {missing[0]}: write one into {Path(missing[0]).stem}.txt beside it")
    return [Material(_name(i), path, prompts[path], is_map=False) for i, path in enumerate(images)]


def _name(number: int) -> str:
    return f"{number:0{DIGITS}d}"


def _copied(path: Path, to: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is in the list, but not there")
    to = to.with_suffix(path.suffix)
    to.parent.mkdir(parents=True, exist_ok=True)
    if not to.is_file():
        shutil.copyfile(path, to)
    return to
