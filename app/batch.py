"""Work in portions: jobs from one picture or a folder of them, each made picture by picture, written at once.

In a folder `circle.png` takes its prompt from `circle.txt`, and from the prompt for all where there is none.
Pictures are made one at a time: what is finished stays when the rest is stopped, and picture k of a request
is, to the byte, what its own request gives.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from app.provenance import (
    PICTURE_SUFFIXES,
    Source,
    digests,
    find_place,
    is_one_file,
    one_picture,
    write_picture,
)
from checkpoints.lora.names import parse_lora
from cldm.request import Request
from ldm.image import read_image, write_png

if TYPE_CHECKING:
    import numpy as np

    from cldm.pipeline import OnStep, Pipeline, Result
TINY_CONFIG = Path(__file__).parents[1] / "models" / "tiny.yaml"


class BadPicture(ValueError):
    """One job's pictures cannot be used; the jobs beside it are not touched by that."""


@dataclass(frozen=True)
class Job:
    """One request and its pictures, one for each control; `name` begins the names of what comes out."""

    name: str
    images: tuple[Path, ...]
    request: Request


def images_in(folder: Path) -> list[Path]:
    """The picture files of `folder` in the order of their names, hidden ones left out.

    FileNotFoundError or ValueError when there are none.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: for one picture use --image")
    found = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in PICTURE_SUFFIXES)
    pictures = [path for path in found if path.is_file() and not path.name.startswith(".")]
    if not pictures:
        raise ValueError(f"{folder} has no pictures: looked for {' '.join(PICTURE_SUFFIXES)}")
    return pictures


def prompt_beside(picture: Path) -> str | None:
    """The prompt in the text file of the same name, on one line; None without such a file.

    ValueError when it is empty or not UTF-8.
    """
    path = picture.with_suffix(".txt")
    if not path.is_file():
        return None
    try:
        prompt = " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: save the prompt as UTF-8") from None
    if not prompt:
        raise ValueError(f"{path} is empty: write a prompt, or remove it to use --prompt")
    return prompt


def folder_jobs(folder: Path, ask: Callable[[str], Request], prompt: str | None) -> list[Job]:
    """A job for each picture of `folder`; `ask` makes the request of a prompt.

    prompt: for pictures without a text file. ValueError when a picture has no prompt at all.
    """
    pictures = images_in(folder)
    prompts = {path: prompt_beside(path) or prompt for path in pictures}
    if missing := [path for path in pictures if prompts[path] is None]:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"no prompt for {missing[0].name}{others}: "
            f"write one into {missing[0].stem}.txt beside it, or give --prompt for all"
        )
    stems = Counter(path.stem for path in pictures)
    # a.png and a.jpg would both become a_seed0.png
    names = {path: path.stem if stems[path.stem] == 1 else path.name for path in pictures}
    requests = {path: ask(prompts[path]) for path in pictures}
    return [Job(names[path], (path,) * len(requests[path].controls), requests[path]) for path in pictures]


def load_pipeline(source: Source) -> "Pipeline":
    """The model that `source` names. Errors as `Pipeline.from_files` and `cldm.cuda_graphs.use_graphs`."""
    from cldm.cuda_graphs import use_graphs

    if source.cuda_graphs and source.save_memory:
        raise ValueError("--save-memory moves the weights that --cuda-graphs has to find in place: give one")
    pipeline = _pipeline(source)
    if source.cuda_graphs:
        model = pipeline.model
        use_graphs([model.model.diffusion_model, model.control_model, *pipeline.branches.values()])
    return pipeline


def _pipeline(source: Source) -> "Pipeline":
    from cldm.pipeline import Pipeline

    try:
        return Pipeline.from_files(
            source.config or TINY_CONFIG,
            *source.weights,
            device=source.device,
            dtype=source.dtype,
            controls=source.branches,
            loras=[parse_lora(one) for one in source.loras],
            save_memory=source.save_memory,
            quantized=source.quantized,
        )
    except FileNotFoundError as error:
        if source.config or source.weights or source.quantized or source.branches or source.loras:
            raise
        raise FileNotFoundError(
            f"the tiny model that ships with this project is not complete ({error}): "
            f"get its files again, or make them with python -m trainer.tiny"
        ) from error


@dataclass(frozen=True)
class Made:
    """A picture on disk and the request it answers; seconds by stage, empty where it lay there already."""

    path: Path
    request: Request
    seconds: dict[str, float]


class Maker:
    """Makes the pictures of jobs; the model is loaded when the first picture needs it.

    out: a folder, or a `.png` for the only picture of the only job. keep_finished: what lies in the folder
    already, from the same request and source, is not made again. save_maps: write the control maps too.
    """

    def __init__(
        self, source: Source, out: Path, *, keep_finished: bool = False, save_maps: bool = False
    ) -> None:
        self.source, self._out = source, out
        self._keep_finished, self._save_maps = keep_finished, save_maps
        self.load_seconds = 0.0

    @cached_property
    def _pipeline(self) -> "Pipeline":
        start = time.perf_counter()
        pipeline = load_pipeline(self.source)
        self.load_seconds = time.perf_counter() - start
        return pipeline

    def make(self, job: Job, on_step: "OnStep | None" = None) -> Iterator[Made]:
        """The pictures of `job`, each written before the next is begun.

        BadPicture when they cannot be read or used; other errors as `load_pipeline` and `write_picture`.
        """
        source, paths = self._source_of(job), [*job.images, self.source.init, self.source.mask]
        requests = [one_picture(job.request, index) for index in range(job.request.num_samples)]
        pictures = None
        for request in requests:
            path, finished = self._place(job, request, source)
            if finished is not None and self._keep_finished:
                yield Made(path, finished, {})
                continue
            pictures = pictures or [None if one is None else _read(one) for one in paths]
            result = self._run(pictures, request, on_step)
            if self._save_maps:
                for number, control_map in enumerate(result.maps):
                    write_png(path.with_name(f"{path.stem}_map{number or ''}.png"), control_map)
            write_picture(path, result.images[0], result.request, source)
            yield Made(path, result.request, dict(result.seconds))

    def _run(
        self, pictures: "Sequence[np.ndarray | None]", request: Request, on_step: "OnStep | None"
    ) -> "Result":
        *images, init, mask = pictures
        pipeline = (
            self._pipeline
        )  # outside of `try`: a model that cannot be loaded is nobody's picture's fault
        try:
            return pipeline(images, request, init=init, mask=mask, on_step=on_step)
        except ValueError as error:
            raise BadPicture(str(error)) from error

    def _source_of(self, job: Job) -> Source:
        paths = [*job.images, self.source.init, self.source.mask]
        try:
            known = digests(paths)
        except OSError:  # `_read` finds better words
            for path in filter(None, paths):
                _read(path)
            raise
        return replace(self.source, image=tuple(path.as_posix() for path in job.images), digests=known)

    def _place(self, job: Job, request: Request, source: Source) -> tuple[Path, Request | None]:
        if is_one_file(self._out):
            return self._out, None
        return find_place(self._out, f"{job.name}_seed{request.seed}", request, source)


def _read(path: str | Path) -> "np.ndarray":
    try:
        return read_image(path)
    except (ValueError, FileNotFoundError) as error:
        raise BadPicture(str(error)) from error
