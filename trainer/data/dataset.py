"""Pairs of image and control image as a training loop takes them.

`ControlDataset` is lllyasviel's `MyDataset` for any data: row i is always the same. `SampleStream` is the
endless stream that a training run sees: which row comes, how it is cropped and turned over and whether its
prompt is left out follow from the seed and the number of the sample alone. So a run that was stopped goes on
where it was, and several processes share one stream without a word between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from annotator.util import HWC3, flatten_map
from ldm.image import read_image
from trainer.data.rows import TrainingPair, missing_files, read_rows
from trainer.settings import Columns, Transform

SIDE = 512  # pixels, of published scripts
READERS = 8  # threads that check a data set; decoding images leaves Python's lock
EVERY_ROW = 0x5EED  # marks the generator that shuffles rows, so that no sample shares its numbers

Sample = dict[str, Any]


class ControlDataset(Dataset):
    """The pairs of `data`, a folder or a list (see `trainer.data.rows`).

    A sample is {"jpg": float32 [H W 3] in [-1, 1], "txt": str, "hint": float32 [H W 3] in [0, 1]}.
    limit: use only so many rows. Raises as `read_rows`, and FileNotFoundError for rows without a file unless
    told not to check.
    """

    def __init__(
        self, data: str | Path = Path("training/fill50k"), transform: Transform | None = None,
        columns: Columns | None = None, limit: int | None = None, *, check_files: bool = True,
    ) -> None:  # fmt: skip
        self.transform = transform or Transform()
        self.side = self.transform.resolution or SIDE
        self.rows = read_rows(Path(data), columns)[:limit]
        if check_files and (missing := missing_files(self.rows)):
            more = f" ({len(missing)} such files)" if len(missing) > 1 else ""
            raise FileNotFoundError(f"{missing[0]}{more}; --validate-data lists them")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index, None)

    def sample(self, index: int, rng: np.random.Generator | None, *, with_image: bool = True) -> Sample:
        """Row `index` as seen by `rng`; None for the middle, unturned, with its first text."""
        row = self.rows[index]
        text = row.texts[0]  # of several captions the first, where nothing is drawn
        if rng is not None:
            chosen = row.texts[rng.integers(len(row.texts))]
            text = "" if rng.random() < self.transform.empty_prompts else chosen
        if not with_image:
            hint = to_square(flatten_map(read_image(row.hint)), self.side)
            return {"txt": text, "hint": hint.astype(np.float32) / 255.0}
        image, hint = (one.astype(np.float32) for one in self.images_of(row, rng))
        return {"jpg": image / 127.5 - 1.0, "txt": text, "hint": hint / 255.0}  # lllyasviel's names

    def images_of(self, row: TrainingPair, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        """Image and control image, uint8 [H W 3], cut and turned alike.

        Raises ValueError naming the row when its images cannot be read or differ in size.
        """
        try:
            pair = [HWC3(read_image(row.image)), flatten_map(read_image(row.hint))]
        except (ValueError, OSError) as error:
            raise ValueError(f"{row.place}: {error}") from None
        if pair[0].shape != pair[1].shape:
            size, other = (f"{one.shape[1]}x{one.shape[0]}" for one in pair)
            words = f"{row.image.name} is {size} but its control image {row.hint.name} {other}"
            raise ValueError(f"{row.place}: {words}; make both one size")
        place = rng.random(2) if rng is not None and self.transform.random_crop else (0.5, 0.5)
        image, hint = (to_square(one, self.side, place) for one in pair)
        if rng is not None and self.transform.flip and rng.random() < 0.5:
            image, hint = image[:, ::-1], hint[:, ::-1]
        return np.ascontiguousarray(image), np.ascontiguousarray(hint)


@dataclass(frozen=True)
class SampleStream(Dataset):
    """The samples of a run without end: number k is {..., "number": k}, the same whenever it is asked for.

    Every row comes once before any comes again, each time in another order. with_image: False where a cache
    has the image.
    """

    data: ControlDataset
    seed: int  # of order, crops, turns and empty prompts
    with_image: bool = True

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng([self.seed, number])
        return self.data.sample(self.row(number), rng, with_image=self.with_image) | {"number": number}

    def row(self, number: int) -> int:
        """Which row sample `number` shows."""
        turn, place = divmod(number, len(self.data))  # which turn through the data, and where in it
        return int(_order(self.seed, turn, len(self.data))[place])


class ShardedSampler(Sampler):
    """The numbers of one process from `start` on, without end: `batch` in a row, then those of the others.

    rank, ranks: which process of how many. All together take every number once.
    """

    def __init__(self, start: int, batch: int, rank: int = 0, ranks: int = 1) -> None:
        self.start, self.batch, self.rank, self.ranks = start, batch, rank, ranks

    def __iter__(self) -> Iterator[int]:
        first = self.start + self.rank * self.batch
        while True:
            yield from range(first, first + self.batch)  # its own batch; then past those of the others
            first += self.batch * self.ranks


@dataclass(frozen=True)
class StreamLoader:
    """How a run reads its stream: `batch` samples a step and process, by so many worker processes."""

    stream: Dataset
    batch: int
    workers: int = 0

    def of(self, start: int, rank: int = 0, ranks: int = 1) -> DataLoader:
        """The batches of one process from sample `start` on, without end."""
        return DataLoader(
            self.stream, self.batch, sampler=ShardedSampler(start, self.batch, rank, ranks),
            num_workers=self.workers, drop_last=True, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip


def validate(dataset: ControlDataset, most: int = 10) -> list[str]:
    """The first `most` rows that cannot be used, each in one sentence; every image is decoded."""

    def problem(row: TrainingPair) -> str | None:
        try:
            dataset.images_of(row, None)
        except ValueError as error:
            return str(error)
        return None if any(text.strip() for text in row.texts) else f"{row.place} has no text"

    with ThreadPoolExecutor(READERS) as pool:
        found = list(islice(filter(None, pool.map(problem, dataset.rows)), most))
        pool.shutdown(cancel_futures=True)  # a set that is wrong from the start is told so soon
    return found


@lru_cache(maxsize=2)  # a batch may lie across two turns
def _order(seed: int, turn: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, turn, EVERY_ROW]).permutation(count)


def to_square(image: np.ndarray, side: int, place: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """The image with its short side scaled to `side`, cut to a square at `place` (0 left or top, 1 end)."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    if scale != 1:
        size = max(side, round(width * scale)), max(side, round(height * scale))
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR  # areas do not alias when an image shrinks
        image = cv2.resize(image, size, interpolation=way)
        height, width = image.shape[:2]
    top, left = round((height - side) * place[1]), round((width - side) * place[0])
    return image[top : top + side, left : left + side]
