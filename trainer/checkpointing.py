"""The checkpoints of a run on disk: `checkpoint-N/`, each whole or not there at all, the oldest dropped.

A checkpoint is written into a `.partial` folder and renamed once it is complete; what it replaces, and what
is beyond the limit, goes only then. So a full disk or a power cut costs the steps since the last one and no
more.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

STATE = "state.ckpt"  # the file, or DeepSpeed's folder, inside a checkpoint
NAME = re.compile(r"checkpoint-(\d+)")
LATEST = "latest"
MARGIN = 1.05  # names, learning-rate state and the file system's own needs, over the bytes of the tensors
GB = 1e9


class CheckpointFolder:
    """The checkpoints in `out`; limit: how many to keep, None for all."""

    def __init__(self, out: Path, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"checkpoints_total_limit={limit}: keep at least 1, or leave it out to keep all")
        self.out, self.limit = Path(out), limit

    def all(self) -> list[Path]:
        """Complete checkpoints, the oldest first."""
        found = ((NAME.fullmatch(path.name), path) for path in self.out.glob("checkpoint-*"))
        whole = [(int(match[1]), path) for match, path in found if match and (path / STATE).exists()]
        return [path for _, path in sorted(whole)]

    def find(self, which: str) -> Path:
        """The checkpoint called `which`: latest, or the path of one.

        Raises FileNotFoundError naming what there is.
        """
        there = self.all()
        if which == LATEST:
            if not there:
                raise FileNotFoundError(f"--resume-from latest: {self.out} holds no checkpoint yet")
            return there[-1]
        for path in (Path(which), self.out / which):
            if (path / STATE).exists():
                return path
        listed = ", ".join(path.name for path in there) or "none"
        raise FileNotFoundError(f"--resume-from {which}: no {STATE} in it; {self.out} has {listed}")

    def check_space(self, size: int) -> None:
        """OSError unless `size` more bytes fit on the disk; nothing is made for the question."""
        folder = self.out
        while not folder.exists():
            folder = folder.parent
        needed, free = size * MARGIN, shutil.disk_usage(folder).free
        if needed > free:
            last = self.all()
            kept = f"{last[-1]} is kept" if last else "nothing was written"
            raise OSError(
                f"the next checkpoint needs {needed / GB:.2f} GB but {self.out} has {free / GB:.2f} GB free: "
                f"make room or lower --checkpoints-total-limit, then resume; {kept}"
            )

    def begin(self, step: int) -> Path:
        """An empty folder to write checkpoint `step` into."""
        partial = self._partial(step)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def finish(self, step: int) -> Path:
        """Give the checkpoint its name, then drop what is beyond the limit."""
        final, partial = self.out / f"checkpoint-{step}", self._partial(step)
        if final.exists():  # a run that went back to an earlier checkpoint comes by again
            old = self.out / f"{final.name}.old.partial"
            shutil.rmtree(old, ignore_errors=True)
            os.replace(final, old)
            os.replace(partial, final)
            shutil.rmtree(old)
        else:
            os.replace(partial, final)
        if self.limit is not None:
            for path in self.all()[: -self.limit]:
                shutil.rmtree(path)
        return final

    def drop(self, step: int) -> None:
        """Remove what `begin` made, after a failure."""
        shutil.rmtree(self._partial(step), ignore_errors=True)

    def _partial(self, step: int) -> Path:
        return self.out / f"checkpoint-{step}.partial"
