"""A published file on disk: fetched over as many connections as it takes, checked, and only then named.

huggingface_hub is not used: it compares sizes and no checksum, and asks a server for headers of its own
protocol, which a plain mirror of the files does not send.
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tools.download.catalogue import GIGABYTE, Published
from tools.download.http import (
    Answer,
    ChangedRemoteError,
    DownloadError,
    InterruptedDownloadError,
    NoAnswerError,
    NotHereError,
    open_remote,
)
from tools.download.partial import Origin, Part

if TYPE_CHECKING:
    import httpx

# (FETCHING or CHECKING, bytes done, bytes in all where known), after each piece
Report = Callable[[str, int, int | None], None]

FETCHING, CHECKING = "fetching", "checking"
TRIES = 6  # half a minute, with the pauses between them
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds; each pause is twice the one before
GOOD_PIECE = 16 * 2**20  # a connection that brought this much before it broke was no failure
SPARE_BYTES = 64 * 2**20  # left free on the disk
READ_BYTES = 4 * 2**20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a published file is to be had now."""

    client: "httpx.Client"
    published: Published
    url: str


def download(source: Source, target: Path, report: Report) -> tuple[bool, str]:
    """Put the file at `source` to `target`: whether it had to be fetched, and what it was checked by.

    DownloadError in one sentence; a part that is of use stays, and a later call goes on with it. OSError as
    of writing a file, BlockingIOError when another process fetches the same one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Part(target)
    with part.held():
        if target.exists():
            return False, check_file(target, source.published, report)
        origin = _fill(source, part, report)
        try:
            checked = _check(part.path, origin.size, origin.sha256, report)
        except DownloadError as error:
            part.drop()
            raise NotHereError(f"{error}, so they were deleted") from None
        part.finish()
    return True, checked


def check_file(path: Path, published: Published, report: Report) -> str:
    """What the finished file at `path` was checked by; DownloadError when it is not the published one."""
    cure = "move it away to fetch the published one"
    if not path.is_file():
        raise DownloadError(f"{path} is not a file: {cure}")
    size = path.stat().st_size
    if not published.may_have(size):
        raise DownloadError(f"{path} is another file, of {size:,} bytes: {cure}")
    try:
        return _check(path, published.size, published.sha256, report)
    except DownloadError as error:
        raise DownloadError(f"{error}: {cure}") from None


def missing_bytes(published: Published, target: Path) -> int:
    """What is still to fetch, at most."""
    return 0 if target.exists() else published.most_bytes - Part(target).length()


def check_space(folder: Path, wanted: int) -> None:
    """DownloadError unless the disk of `folder` has room for so many bytes more."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if wanted and free < wanted + SPARE_BYTES:
        raise DownloadError(
            f"the disk of {folder} has {free / GIGABYTE:.2f} GB left, and {wanted / GIGABYTE:.2f} GB are "
            "still to come: free some, or choose another folder with --dest"
        )


def _fill(source: Source, part: Part, report: Report) -> Origin:
    """Bring in what the part lacks, over as many connections as it takes; where its bytes come from."""
    tries, longest, answered, changed = 0, part.length(), False, False
    while True:
        try:
            return _connect(source, part, None if changed else _known(source, part), report)
        except NoAnswerError as error:
            if not answered:
                raise
            broken = InterruptedDownloadError(str(error))
        except InterruptedDownloadError as error:
            broken, answered, changed = error, True, isinstance(error, ChangedRemoteError)
        if part.length() >= longest + GOOD_PIECE:
            tries, longest = 0, part.length()
        tries += 1
        if tries == TRIES:
            kept = f"; {part.path} keeps {part.length():,} bytes, the same command goes on from there"
            raise NotHereError(f"{broken}, {TRIES} times{kept if part.length() else ''}")
        pause = min(max(FIRST_PAUSE * 2 ** (tries - 1), broken.wait), LONGEST_PAUSE)
        log.warning("%s: trying again in %.0f s", broken, pause)
        time.sleep(pause)


def _known(source: Source, part: Part) -> Origin | None:
    """Where the bytes of the part come from, if a later answer can tell that it is the same file."""
    origin = part.origin()
    return origin if origin and origin.is_told(source.url) else None


def _connect(source: Source, part: Part, known: Origin | None, report: Report) -> Origin:
    """One connection, for what follows the bytes from `known`; their origin once none is missing."""
    start = part.length() if known else 0
    if known and start == known.size:
        return known
    validator = known.validator if known and not known.sha256 else None  # tags differ where checksums do not
    with open_remote(source.client, source.url, start, validator) as answer:
        origin = _origin(source, answer)
        if not answer.start:
            part.begin(origin)
        elif answer.start != start or not known.is_same(origin):
            raise ChangedRemoteError(f"{source.url} is not the file it was")
        else:
            origin = replace(origin, sha256=known.sha256 or origin.sha256)
        check_space(part.path.parent, (origin.size or source.published.most_bytes) - answer.start)
        done = _append(answer, part, origin.size, report)
    if origin.size and done < origin.size:
        raise InterruptedDownloadError(f"{source.url} ended early")
    return origin


def _append(answer: Answer, part: Part, size: int | None, report: Report) -> int:
    done = answer.start
    report(FETCHING, done, size)
    with part.path.open("ab") as file:
        for chunk in answer.chunks:
            file.write(chunk)
            done += len(chunk)
            report(FETCHING, done, size)
    return done


def _origin(source: Source, answer: Answer) -> Origin:
    """What will come, from the catalogue and the server; NotHereError when these two disagree."""
    published, url = source.published, source.url
    if answer.size is not None and not published.may_have(answer.size):
        raise NotHereError(f"{url} is another file, of {answer.size:,} bytes")
    if published.sha256 and answer.sha256 not in (None, published.sha256):
        raise NotHereError(f"{url} is another file, with the sha256 {answer.sha256}")
    size, sha256 = answer.size or published.size, published.sha256 or answer.sha256
    if size is None and sha256 is None:
        raise NotHereError(
            f"{url} says neither its length nor its checksum, so nothing would tell it complete"
        )
    return Origin(url, size, sha256, answer.validator)


def _check(path: Path, size: int | None, sha256: str | None, report: Report) -> str:
    """By what the file at `path` is right; DownloadError otherwise."""
    length = path.stat().st_size
    if size is not None and length != size:
        raise DownloadError(f"{path} holds {length:,} bytes instead of {size:,}")
    if sha256 is None:
        return "size" if size else "rough size"
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
            done += len(block)
            report(CHECKING, done, length)
    if digest.hexdigest() != sha256:
        raise DownloadError(f"the bytes of {path} are not the published ones (sha256 {digest.hexdigest()})")
    return "sha256"
