"""What a server says of a file, the bytes it sends, and each way in which it may fail."""

import re
import socket

import pytest

from tests.file_server import FileServer, Reply, forget_proxies
from tools.download.http import (
    ChangedRemoteError,
    DownloadError,
    InterruptedDownloadError,
    LockedError,
    NoAnswerError,
    NotHereError,
    open_client,
    open_remote,
)

CONTENT = bytes(range(256)) * 4
SHA256 = "0123456789abcdef" * 4
GATED, NO_REPOSITORY = {"X-Error-Code": "GatedRepo"}, {"X-Error-Code": "RepoNotFound"}
DATE = "Sat, 21 Nov 2026 05:43:14 GMT"


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    forget_proxies(monkeypatch)


def ask(reply, start=0, validator=None):
    """The answer without its bytes, the bytes, and what the server was asked."""
    with (
        FileServer(reply).running() as server,
        open_client() as client,
        open_remote(client, f"{server.url}/weights.pth", start, validator) as answer,
    ):
        return answer, b"".join(answer.chunks), server.requests[0][1]


def test_the_whole_file_comes_as_it_lies_there():
    answer, content, headers = ask(Reply(CONTENT))
    assert (answer.start, answer.size, answer.sha256, content) == (0, len(CONTENT), None, CONTENT)
    assert headers["Accept-Encoding"] == "identity"
    assert "Range" not in headers
    assert "Authorization" not in headers


def test_the_rest_of_a_file_comes_with_the_size_of_the_whole():
    answer, content, headers = ask(Reply(CONTENT), start=1000, validator='"one"')
    assert (answer.start, answer.size, content) == (1000, len(CONTENT), CONTENT[1000:])
    assert (headers["Range"], headers["If-Range"]) == ("bytes=1000-", '"one"')


def test_a_server_may_answer_with_all_of_it():
    for reply in (Reply(CONTENT, ranges=False), Reply(CONTENT, tag='"two"')):
        answer, content, _ = ask(reply, start=1000, validator='"one"')
        assert (answer.start, content) == (0, CONTENT)


@pytest.mark.parametrize(
    ("tag", "headers", "validator"),
    [
        ('"strong"', {"Last-Modified": DATE}, '"strong"'),
        ('W/"weak"', {"Last-Modified": DATE}, DATE),
        (None, {"Last-Modified": DATE}, DATE),
        ('W/"weak"', {}, None),
    ],
)
def test_the_strongest_validator_is_kept(tag, headers, validator):
    assert ask(Reply(CONTENT, tag=tag, headers=headers))[0].validator == validator


@pytest.mark.parametrize(
    ("said", "sha256"),
    [(f'"{SHA256}"', SHA256), (SHA256, SHA256), (f'"{SHA256[:40]}"', None), (f'W/"{SHA256}"', None)],
)
def test_only_a_whole_sha256_is_a_checksum(said, sha256):
    assert ask(Reply(CONTENT, headers={"X-Linked-ETag": said}))[0].sha256 == sha256


def test_a_size_is_known_without_a_length_if_the_hub_says_it():
    assert ask(Reply(CONTENT, length=False))[0].size is None
    assert ask(Reply(CONTENT, length=False, headers={"X-Linked-Size": "1024"}))[0].size == 1024


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(status=404), NotHereError("127.0.0.1")),
        (Reply(status=410), NotHereError("does not have it (HTTP 410)")),
        (Reply(status=204), NotHereError("does not have it (HTTP 204)")),
        (Reply(status=401), LockedError("logged in (HTTP 401)")),
        (Reply(status=403, headers=GATED), LockedError("logged in (HTTP 403)")),
        (Reply(status=401, headers=NO_REPOSITORY), NotHereError("does not have it (HTTP 401)")),
        (Reply(status=302, headers={"Location": "/again"}), NotHereError("redirect")),
        (Reply(status=302, headers={"Location": "ftp://elsewhere/x"}), DownloadError("ftp://")),
        (Reply(status=206), NotHereError("does not say which")),
        (Reply(status=416), ChangedRemoteError("shorter file")),
        (Reply(status=503), InterruptedDownloadError("busy (HTTP 503)")),
        (Reply(CONTENT, cut=10), InterruptedDownloadError("broke (peer closed connection")),
    ],
    ids=lambda one: str(one) if isinstance(one, Exception) else "",
)
def test_each_failure_has_its_kind_and_one_sentence(reply, error):
    with pytest.raises(type(error), match=re.escape(str(error))) as caught:
        ask(reply)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("said", "wait"), [("7", 7), ("soon", 0), (DATE, 0)])
def test_how_long_to_wait_is_what_the_server_says(said, wait):
    with pytest.raises(InterruptedDownloadError) as caught:
        ask(Reply(status=429, headers={"Retry-After": said}))
    assert caught.value.wait == wait


def ask_nobody(host):
    with (
        open_client() as client,
        pytest.raises(NoAnswerError, match=f"{host} does not answer"),
        open_remote(client, f"http://{host}/weights.pth"),
    ):
        pass


def test_a_port_where_nobody_listens():
    ask_nobody("127.0.0.1:1")


def test_a_name_that_nobody_has(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    ask_nobody("weights.invalid")


def test_the_token_is_shown_to_the_first_host_alone():
    host = FileServer(Reply(CONTENT))
    hub = FileServer(Reply(status=302, headers={"Location": f"{host.url}/blob"}))
    with (
        host.running(),
        hub.running(),
        open_client("hf_secret") as client,
        open_remote(client, f"{hub.url}/weights.pth") as answer,
    ):
        assert b"".join(answer.chunks) == CONTENT
    assert hub.requests[0][1]["Authorization"] == "Bearer hf_secret"
    assert "hf_secret" not in str(host.requests)


def test_the_proxy_of_the_environment_is_used(monkeypatch):
    url = "http://weights.invalid/weights.pth"
    with FileServer(Reply(CONTENT)).running() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with open_client() as client, open_remote(client, url) as answer:
            assert b"".join(answer.chunks) == CONTENT
    assert proxy.requests[0][0] == url


def test_a_proxy_of_an_unknown_kind_is_said(monkeypatch):
    monkeypatch.setenv("all_proxy", "gopher://127.0.0.1")
    with pytest.raises(DownloadError, match="proxy"), open_client():
        pass
