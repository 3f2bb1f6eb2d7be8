"""The unfinished file beside the one that is wanted.

Beside `x.pth` lie, while it is not complete: `x.pth.part` with the bytes so far, `x.pth.part.json` with what
the server said of the file that they belong to, and `x.pth.lock`, which one process at a time holds.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Origin:
    """The remote file that the bytes of a part belong to. validator: as in `tools.download.http.Answer`."""

    url: str
    size: int | None
    sha256: str | None
    validator: str | None

    def is_told(self, url: str) -> bool:
        """Whether a later answer from `url` can tell that it is the same file."""
        return bool(self.sha256 or (self.validator and self.url == url))

    def is_same(self, later: "Origin") -> bool:
        """Whether what a later answer sends may follow the bytes that are here; `is_told` of its url."""
        if self.size != later.size:
            return False
        if self.sha256:
            return later.sha256 in (None, self.sha256)
        return self.validator == later.validator


class Part:
    """The bytes so far of `target`, and where they come from."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.json")
        self._lock = target.with_name(f"{target.name}.lock")

    def length(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size if self.path.exists() else 0

    def origin(self) -> Origin | None:
        """Where the bytes come from; None where there are none, or nothing readable says it."""
        if not self.length():
            return None
        try:
            origin = Origin(**json.loads(self._note.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return origin if origin.size is None or self.length() <= origin.size else None

    def begin(self, origin: Origin) -> None:
        """Empty the part and write down where its bytes will come from."""
        self.drop()  # before the note, or a crash between them would give old bytes a new origin
        self._note.write_text(json.dumps(asdict(origin)), encoding="utf-8")

    def drop(self) -> None:
        """Delete the bytes and what is known of them."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the complete file its name."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())  # a name must not survive a power cut that its bytes do not
        os.replace(self.path, self.target)
        self._note.unlink(missing_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else touches the part meanwhile; BlockingIOError at once when somebody does."""
        from filelock import FileLock, Timeout

        lock = FileLock(self._lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BlockingIOError(
                f"another process is fetching {self.target}: wait for it, then repeat the command"
            ) from None
        try:
            yield
        finally:
            if not self.path.exists():
                # Whoever takes a deleted lock finds the finished file first, or nothing that could be spoilt.
                with suppress(PermissionError):  # Windows deletes no open file
                    self._lock.unlink(missing_ok=True)
            lock.release()
