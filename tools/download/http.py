"""One HTTP request for a file or for its end: what the server says of it, and its bytes.

Range and If-Range are RFC 9110, sections 13.1.5 and 14. Hugging Face's hub answers with a redirect whose
headers X-Linked-ETag and X-Linked-Size are the sha256 and the size of the file behind it. httpx takes proxies
and certificates from the environment, and leaves the token out when a redirect leads to another host.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS, SILENCE_SECONDS = 15, 60  # a hub can take long to find a large file
RANGES_START_ELSEWHERE = 416
TOO_MANY = 429
FOR_NOW = {408, 425, TOO_MANY, 500, 502, 503, 504}  # the same request may succeed later
LOCKED = {401, 403}
NOT_THERE_CODES = {"RepoNotFound", "EntryNotFound", "RevisionNotFound"}  # the hub sends them with 401 as well
SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class DownloadError(Exception):
    """A file cannot be had, said in one sentence."""


class NotHereError(DownloadError):
    """This server will not give the file; another one may."""


class NoAnswerError(NotHereError):
    """Nobody answers at this address."""


class LockedError(DownloadError):
    """The server gives the file only to those who may have it."""


class InterruptedDownloadError(DownloadError):
    """The connection broke, or the server is busy: the same request may succeed later."""

    def __init__(self, sentence: str, wait: float = 0) -> None:
        super().__init__(sentence)
        self.wait = wait  # seconds that the server asks for


class ChangedRemoteError(InterruptedDownloadError):
    """The server has another file there than before: the same request for all of it may succeed."""


@dataclass(frozen=True)
class Answer:
    """What a server says of a file: the place of the first byte it sends, and of the whole file the rest.

    validator: a strong ETag, or else the date of the last change; it stays while the bytes stay.
    """

    start: int
    size: int | None
    sha256: str | None
    validator: str | None
    chunks: Iterator[bytes]


@contextmanager
def open_client(token: str | None = None) -> "Iterator[httpx.Client]":
    """Connections with the environment's proxies; `token` is shown to the first host of each address only."""
    import httpx

    headers = {"Accept-Encoding": "identity", "User-Agent": "featherweight-controlnet"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
    try:
        client = httpx.Client(headers=headers, timeout=timeout, follow_redirects=True)
    except (ImportError, ValueError) as error:  # a kind of proxy that httpx does not know
        raise DownloadError(f"the proxy of this shell's environment cannot be used: {error}") from None
    with client:
        yield client


@contextmanager
def open_remote(
    client: "httpx.Client", url: str, start: int = 0, validator: str | None = None
) -> Iterator[Answer]:
    """The file at `url` from byte `start` on, or from byte 0 when `validator` belongs to another one.

    DownloadError of the kind that says what may help; also while the bytes come.
    """
    import httpx

    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and validator:
        headers["If-Range"] = validator
    try:
        with client.stream("GET", url, headers=headers) as response:
            _check_status(response)
            yield _read_answer(response)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
        raise NoAnswerError(f"{_host(url)} does not answer ({_reason(error)})") from None
    except httpx.TransportError as error:
        raise InterruptedDownloadError(f"the connection to {_host(url)} broke ({_reason(error)})") from None
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise NotHereError(f"{url} cannot be fetched ({_reason(error)})") from None


def _check_status(response: "httpx.Response") -> None:
    status, url = response.status_code, response.url
    missing = response.headers.get("X-Error-Code") in NOT_THERE_CODES
    if status in (200, 206):
        return
    if status == RANGES_START_ELSEWHERE:
        raise ChangedRemoteError(f"{_host(url)} has a shorter file now")
    if status in FOR_NOW:
        wait = response.headers.get("Retry-After", "")
        raise InterruptedDownloadError(
            f"{_host(url)} is busy (HTTP {status})", float(wait) if wait.isdecimal() else 0
        )
    if status in LOCKED and not missing:
        raise LockedError(f"{_host(url)} gives it only to those who are logged in (HTTP {status})")
    raise NotHereError(f"{_host(url)} does not have it (HTTP {status})")


def _read_answer(response: "httpx.Response") -> Answer:
    headers = response.headers
    linked = [one.headers for one in (*response.history, response)]
    sizes = (one.get("X-Linked-Size", "") for one in linked)
    size = next((int(one) for one in sizes if one.isdecimal()), None)
    start = 0
    if response.status_code == 206:
        found = CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if found is None:
            raise NotHereError(f"{_host(response.url)} sends a piece and does not say which")
        start, size = int(found[1]), int(found[2]) if found[2].isdecimal() else size
    elif headers.get("Content-Length", "").isdecimal():
        size = int(headers["Content-Length"])
    tags = (SHA256.fullmatch(one.get("X-Linked-ETag", "")) for one in linked)
    sha256 = next((tag[1] for tag in tags if tag), None)
    return Answer(start, size, sha256, _validator(headers), response.iter_raw())


def _validator(headers: Mapping[str, str]) -> str | None:
    """Only strong tags may be compared byte for byte; a date is the next best."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _host(url: object) -> str:
    return str(url).split("/")[2]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
