"""Files and folders that appear whole or not at all.

They grow under a hidden name beside their place, because a rename is atomic on one disk only, and take that
place once they are complete. A full disk, a power cut or Ctrl-C leaves what was there before.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 2**20


@contextmanager
def atomic_write(path: Path, mark: str = "") -> Iterator[Path]:
    """A hidden name beside `path` for a file or folder to be made; takes its place at the end, or goes.

    mark: begins the hidden name, so that what a killed process left can be told from what others write. A
    file's bytes are on the disk before it gets its name. OSError in one sentence that names `path`.
    """
    partial = path.with_name(f".{mark}{uuid.uuid4().hex}.partial")  # short, however long the name is
    old = partial.with_suffix(".old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if partial.is_file():
                _flush(partial)
            if partial.is_dir() and path.is_dir():  # a full folder is not replaced in one step
                path.rename(old)
            partial.replace(path)
        finally:
            if old.exists() and not path.exists():
                old.rename(path)
            for left in (partial, old):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{path} was not written: {error.strerror or error}") from error


def check_space(path: Path, size: float) -> None:
    """OSError unless `size` bytes more have room where `path` is or will be; makes nothing to find out."""
    path_and_parents = (path.absolute(), *path.absolute().parents)
    folder = next(one for one in path_and_parents if one.is_dir())
    if (free := shutil.disk_usage(folder).free) < size:
        raise OSError(f"{path} needs {size / MIB:.0f} MiB, but {free / MIB:.0f} MiB are free in {folder}")


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
