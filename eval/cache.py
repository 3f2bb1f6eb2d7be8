"""Features of pictures, kept by what they were computed from, so that nothing is computed twice.

A store is a folder of files of fixed records: 32 bytes of key, then the numbers. A process appends to a file
of its own and any number of processes read; the half record of one that was killed is passed over. Keys are
sha256 of all that went in, so that a picture is found again under any name.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

SUFFIX = ".rows"
KEY_BYTES = 32
BLOCK = 4096  # rows read at once


def key_of(parts: Iterable[str]) -> bytes:
    """32 bytes for what was computed from `parts`, in order."""
    return hashlib.sha256("\0".join(parts).encode()).digest()


class Store:
    """The rows of one feature: `size` numbers of `dtype` a key. Makes `folder` when something is written."""

    def __init__(self, folder: Path, size: int, dtype: str) -> None:
        self.folder, self.size = folder, size
        self._record = np.dtype([("key", f"V{KEY_BYTES}"), ("values", dtype, (size,))])
        self._files: list[np.memmap] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        self.refresh()

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def refresh(self) -> None:
        """Find what has been written since, by whomever."""
        self._files, self._places = [], {}
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            whole = path.stat().st_size // self._record.itemsize
            if not whole:
                continue
            rows = np.memmap(path, self._record, "r", shape=(whole,))
            for row, key in enumerate(rows["key"]):
                self._places[key.tobytes()] = len(self._files), row
            self._files.append(rows)

    def writer(self) -> Writer:
        """What appends to this store."""
        return Writer(self.folder / f"{uuid.uuid4().hex}{SUFFIX}", self._record)

    def rows(self, keys: Sequence[bytes]) -> StoredRows:
        """The features of `keys` in order, all of which are here."""
        places = np.array([self._places[key] for key in keys], np.int64).reshape(-1, 2)
        return StoredRows(self._files, places, self.size)


class Writer:
    """Appends records to a file of its own; a call's are in the system's hands when it returns."""

    def __init__(self, path: Path, record: np.dtype) -> None:
        self._path, self._record = path, record

    def add(self, keys: Sequence[bytes], values: np.ndarray) -> None:
        """values: [n size], a row a key."""
        rows = np.zeros(len(keys), self._record)
        rows["key"] = np.array(keys, f"V{KEY_BYTES}")
        rows["values"] = values
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(rows.tobytes())


class StoredRows:
    """Rows on disk, read where they are asked for (`eval.metrics.metric.Rows`)."""

    def __init__(self, files: Sequence[np.memmap], places: np.ndarray, size: int) -> None:
        self._files, self._places, self._size = files, places, size

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, wanted: slice | np.ndarray) -> np.ndarray:
        places = self._places[wanted]
        found = np.empty((len(places), self._size))
        for number in np.unique(places[:, 0]):
            mine = places[:, 0] == number
            found[mine] = self._files[number]["values"][places[mine, 1]]
        return found
