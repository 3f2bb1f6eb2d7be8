"""A published file on disk: fetched by huggingface_hub's own requests, checked, and only then named.

`hf_hub_download` deletes what came when it is stopped, and names a file before its checksum is known. Its two
halves do not: what the hub says of a file, and its bytes from where one asks. These grow in `x.pth.KEY.part`,
where KEY tells versions of the file apart, and the next command goes on from there.
"""

import glob
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from common.hashing import sha256_of
from tools.download.catalogue import HUB, ON_WEB, OTHER_HUB, PublishedFile

if TYPE_CHECKING:
    import httpx

WAIT = 30  # seconds for an answer
LOGIN_CODES = {401, 403}
MISSING_WORDS = {"RepoNotFound", "EntryNotFound", "RevisionNotFound"}  # the hub sends them with 401 as well


class DownloadError(Exception):
    """A file cannot be had, said in one sentence."""


class NoAnswerError(DownloadError):
    """Nobody answers at this address."""


def fetch(published: PublishedFile, target: Path, mirror: str) -> tuple[bool, str]:
    """Put `published` to `target`: whether it had to be fetched, and what it was checked by.

    mirror: address of a server with the hub's paths; a file that is not on the hub comes from its own place.
    DownloadError in one sentence, OSError as of writing a file. What came stays unless it is wrong; a file of
    somebody else is never replaced.
    """
    mirror = published.repository if published.repository.startswith(ON_WEB) else mirror
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        if target.exists():
            return False, _check(target, published, "move it away to fetch the published one")
        with sentences(published, mirror):
            part, expected = _receive(published, target, mirror)
        try:
            checked_by = _check(part, expected, f"it was deleted, {_elsewhere(mirror)}")
        except DownloadError:
            part.unlink()
            raise
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # a name must not survive a power cut that its bytes do not
        part.replace(target)
    return True, checked_by


def fetched_bytes(target: Path) -> int:
    """How much of the unfinished file that is to become `target` is there."""
    return max((part.stat().st_size for part in _parts(target)), default=0)


def _receive(published: PublishedFile, target: Path, mirror: str) -> tuple[Path, PublishedFile]:
    """Bring in what is missing: the part that holds all of it, and what the server says that it is."""
    from huggingface_hub.file_download import http_get

    asked = _ask_web if mirror == published.repository else _ask_hub
    remote = asked(published, mirror)
    expected = _agreed(published, remote.size, remote.etag, mirror)
    part = _part(target, expected.sha256 or remote.etag, expected.max_bytes)
    headers = dict(remote.headers) | {"Accept-Encoding": "identity"}
    options = {"headers": headers, "expected_size": expected.size}
    with part.open("ab") as file:
        http_get(remote.location, file, resume_size=file.tell(), **options)
    return part, expected


@dataclass(frozen=True)
class _Remote:
    """A file as its server describes it. headers: what it wants to be asked with."""

    location: str
    size: int | None
    etag: str | None
    headers: Mapping[str, str] = field(default_factory=dict)


def _ask_hub(published: PublishedFile, mirror: str) -> _Remote:
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.utils import build_hf_headers

    url = f"{mirror}/{published.repository}/resolve/main/{published.path}"
    token = None if mirror == HUB else False  # None: of the environment or of a login, for the hub alone
    remote = get_hf_file_metadata(url, token=token)
    same_host = _host(remote.location) == _host(url)
    headers = build_hf_headers(token=token if same_host else False)
    return _Remote(remote.location, remote.size, remote.etag, headers)


def _ask_web(published: PublishedFile, folder: str) -> _Remote:
    import httpx

    answer = httpx.head(f"{folder}/{published.path}", follow_redirects=True, timeout=WAIT)
    if answer.is_error:
        said = f"{_host(folder)} does not give it (HTTP {answer.status_code})"
        raise DownloadError(f"{said}: {_elsewhere(folder)}")
    length = answer.headers.get("Content-Length")
    return _Remote(str(answer.url), int(length) if length else None, answer.headers.get("ETag"))


def _agreed(published: PublishedFile, size: int | None, etag: str | None, mirror: str) -> PublishedFile:
    """The file with the server's size and checksum too; DownloadError when it is another one."""
    sha256 = etag if etag and re.fullmatch("[0-9a-f]{64}", etag) else None
    if size is not None and not published.can_have(size):
        raise DownloadError(f"{mirror} has another file, of {size:,} bytes: {_elsewhere(mirror)}")
    if sha256 and not sha256.startswith(published.sha256 or ""):
        raise DownloadError(f"{mirror} has another file, with the sha256 {sha256}: {_elsewhere(mirror)}")
    return replace(published, size=size or published.size, sha256=sha256 or published.sha256)


def _part(target: Path, key: str | None, max_bytes: int) -> Path:
    """Where the bytes grow. Those of another version, or of one that nothing tells, are deleted."""
    part = target.with_name(f"{target.name}.{re.sub('[^0-9A-Za-z-]', '_', key or 'new')}.part")
    for other in _parts(target):
        if other != part or not key or other.stat().st_size > max_bytes:
            other.unlink()
    return part


def _parts(target: Path) -> list[Path]:
    return list(target.parent.glob(f"{glob.escape(target.name)}.*.part"))


def _check(path: Path, published: PublishedFile, cure: str) -> str:
    """By what the file at `path` is right; DownloadError with `cure` otherwise."""
    from tqdm import tqdm

    if not path.is_file():
        raise DownloadError(f"{path} is not a file: {cure}")
    size = path.stat().st_size
    if not published.can_have(size):
        raise DownloadError(f"{path} is another file, of {size:,} bytes: {cure}")
    if published.sha256 is None:
        return "size" if published.size else "name" if published.gigabytes is None else "rough size"
    options = {"unit": "B", "unit_scale": True, "delay": 1, "disable": None}  # None: on a terminal alone
    with tqdm(desc=f"checking {path.name}", total=size, **options) as bar:
        found = sha256_of(path, bar.update)
    if not found.startswith(published.sha256):  # some are known by their first digits
        raise DownloadError(f"{path} is another file, with the sha256 {found}: {cure}")
    return "sha256"


@contextmanager
def sentences(published: PublishedFile, mirror: str) -> Iterator[None]:
    """What huggingface_hub and httpx raise becomes a DownloadError that says what may help."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    host = _host(mirror)
    try:
        yield
    except HfHubHTTPError as error:
        raise DownloadError(_refusal(error.response, published, mirror)) from None
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
        raise NoAnswerError(f"{host} does not answer ({error}): {_elsewhere(mirror)}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        broken = f"the connection to {host} broke ({str(error) or type(error).__name__})"
        raise DownloadError(f"{broken}: the same command goes on where it ended") from None
    except OSError as error:
        if error.errno is not None:  # of writing
            raise
        raise DownloadError(f"{host}: {str(error).splitlines()[0]}") from None
    except (ImportError, ValueError) as error:  # a kind of proxy that httpx does not know
        raise DownloadError(f"the proxy of this shell's environment cannot be used: {error}") from None


def _refusal(response: "httpx.Response", published: PublishedFile, mirror: str) -> str:
    said = f"{_host(mirror)} does not give it (HTTP {response.status_code})"
    missing = response.headers.get("X-Error-Code") in MISSING_WORDS
    if response.status_code in LOGIN_CODES and not missing and mirror == HUB:
        page = f"{HUB}/{published.repository}"
        return f"{said}: accept the terms at {page}, set HF_TOKEN to a token of yours, and repeat the command"
    return f"{said}: {_elsewhere(mirror)}"


def _elsewhere(mirror: str) -> str:
    if urlsplit(mirror).path:
        return "fetch it in a browser"
    return f"try --mirror {HUB if mirror != HUB else OTHER_HUB}, or fetch it in a browser"


def _host(url: str) -> str:
    return url.split("/")[2]


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Nobody else fetches `target` meanwhile; DownloadError at once when somebody does."""
    from filelock import FileLock, Timeout

    path = target.with_name(f"{target.name}.lock")
    try:
        with FileLock(path, timeout=0):
            try:
                yield
            finally:
                with suppress(PermissionError):  # Windows deletes no open file
                    path.unlink(missing_ok=True)
    except Timeout:
        raise DownloadError(f"another process is fetching {target}: repeat the command later") from None
