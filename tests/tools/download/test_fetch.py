"""Whatever a server does, the file is on disk complete and right or not at all, and what came is not lost."""

import errno
import hashlib
import random
import threading
from contextlib import suppress

import pytest

from tests.hub_server import hub_on_this_machine
from tools.download import fetch as module
from tools.download.catalogue import PublishedFile
from tools.download.fetch import DownloadError, NoAnswerError, fetch, fetched_bytes

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
LENGTH, SHA256 = len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
NAME = "weights.pth"


def published(size=LENGTH, sha256=SHA256):
    return PublishedFile("someone/something", NAME, 0.0, size, sha256)


UNKNOWN = published(None, None)


@pytest.fixture
def hub(monkeypatch):
    """Has the file; nobody waits before asking again, and pieces of 10 kB are written at once."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    with hub_on_this_machine(monkeypatch) as server:
        server.files[NAME] = CONTENT
        yield server


@pytest.fixture
def get(hub, tmp_path):
    return lambda what=None, mirror=None: fetch(what or published(), tmp_path / NAME, mirror or hub.address)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def is_whole(folder):
    return names(folder) == [NAME] and (folder / NAME).read_bytes() == CONTENT


def break_off(hub, get, what=None, count=100_000):
    """Have a server give so many bytes and no more, however often it is asked."""
    hub.cuts = [count, *[0] * 20]
    with pytest.raises(DownloadError, match="broke .*: the same command goes on where it ended"):
        get(what)
    hub.cuts, hub.ranges = [], []


def test_a_file_comes_whole_and_nothing_lies_beside_it(hub, get, tmp_path):
    assert get() == (True, "sha256")
    assert is_whole(tmp_path)
    assert [path for path, _ in hub.asked] == [f"/someone/something/resolve/main/{NAME}"]


def test_a_cut_connection_goes_on_where_it_ended(hub, get, tmp_path):
    hub.cuts = [100_000, 100_000]
    get()
    assert is_whole(tmp_path)
    assert hub.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_what_came_stays_and_the_next_command_goes_on_there(hub, get, tmp_path):
    break_off(hub, get)
    assert NAME not in names(tmp_path)
    assert fetched_bytes(tmp_path / NAME) == 100_000
    get()
    assert hub.ranges == ["bytes=100000-"]
    assert is_whole(tmp_path)
    assert fetched_bytes(tmp_path / NAME) == 0


def test_a_server_that_ignores_ranges_is_asked_from_the_beginning(hub, get, tmp_path):
    break_off(hub, get)
    hub.ranged = False
    get()
    assert is_whole(tmp_path)


def test_all_bytes_of_an_ended_download_are_not_fetched_again(hub, get, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_check", stop)
        with pytest.raises(KeyboardInterrupt):
            get()
    get()
    assert hub.fetched() == 1
    assert is_whole(tmp_path)


@pytest.mark.parametrize("what", [published(), UNKNOWN], ids=["known", "said by the hub"])
@pytest.mark.parametrize("size", [LENGTH, LENGTH - 1, LENGTH + 1])
def test_bytes_that_nobody_promised_get_no_name(hub, get, tmp_path, what, size):
    hub.sends[NAME] = (OTHER + OTHER)[:size]
    with pytest.raises(DownloadError):
        get(what)
    assert NAME not in names(tmp_path)
    hub.sends.clear()
    with suppress(DownloadError):  # a beginning that may be right is gone on with, once
        get(what)
    get(what)
    assert is_whole(tmp_path)


def test_wrong_bytes_are_said_and_deleted(hub, get, tmp_path):
    hub.sends[NAME] = OTHER
    with pytest.raises(
        DownloadError, match=r"another file, with the sha256 \w+: it was deleted, try --mirror"
    ):
        get()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (published(size=LENGTH + 1), "another file, of 300,000 bytes"),
        (PublishedFile("a/b", NAME, 1.45), "another file, of 300,000 bytes"),
        (published(sha256="0" * 64), f"another file, with the sha256 {SHA256}"),
    ],
    ids=["size", "web page", "checksum"],
)
def test_another_file_is_refused_before_it_comes_and_the_part_stays(hub, get, tmp_path, what, says):
    break_off(hub, get)
    with pytest.raises(DownloadError, match=f"{says}: try --mirror"):
        get(what)
    assert hub.fetched() == 0
    assert fetched_bytes(tmp_path / NAME) == 100_000


def test_a_file_that_changed_meanwhile_is_fetched_from_its_beginning(hub, get, tmp_path):
    hub.files[NAME] = OTHER
    break_off(hub, get, UNKNOWN)
    hub.files[NAME] = CONTENT
    get(UNKNOWN)
    assert hub.ranges == [None]
    assert is_whole(tmp_path)


@pytest.mark.parametrize(("tag", "start"), [('"tag"', "bytes=100000-"), ("", None)])
def test_a_plain_server_goes_on_if_a_tag_tells_that_it_is_the_same_file(hub, get, tmp_path, tag, start):
    hub.linked, hub.headers = False, {"ETag": tag}
    break_off(hub, get, UNKNOWN)
    assert get(UNKNOWN) == (True, "size")
    assert hub.ranges == [start]
    assert is_whole(tmp_path)


def test_a_part_goes_on_at_another_server_if_a_checksum_vouches_for_it(hub, get, tmp_path):
    break_off(hub, get)
    hub.linked, hub.headers = False, {"ETag": '"of another server"'}
    get()
    assert hub.ranges == ["bytes=100000-"]
    assert is_whole(tmp_path)


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (
            404,
            "EntryNotFound",
            r"\(HTTP 404\): try --mirror https://huggingface.co, or fetch it in a browser",
        ),
        (404, "", r"\(HTTP 404\): try --mirror"),
        (401, "RepoNotFound", r"\(HTTP 401\): try --mirror"),
        (403, "GatedRepo", r"\(HTTP 403\): try --mirror"),
        (503, "", r"\(HTTP 503\): try --mirror"),
    ],
)
def test_each_refusal_is_one_sentence(hub, get, tmp_path, status, code, says):
    hub.status[NAME], hub.headers = status, {"X-Error-Code": code}
    with pytest.raises(DownloadError, match=rf"^127.0.0.1:\d+ does not give it {says}") as caught:
        get()
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_login_page_of_the_hub_says_what_to_do(hub, get, monkeypatch):
    hub.refuses = True
    monkeypatch.setattr(module, "HUB", hub.address)
    page = f"{hub.address}/someone/something"
    with pytest.raises(DownloadError, match=rf"\(HTTP 401\): accept the terms at {page}, set HF_TOKEN"):
        get()


def test_the_token_is_for_the_hub_alone_and_not_for_the_host_behind_it(hub, get, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get()
    assert hub.asked[-1][1] is None
    (tmp_path / NAME).unlink()
    monkeypatch.setattr(module, "HUB", hub.address)
    get()
    assert hub.asked[-1][1] == "Bearer hf_secret"
    (tmp_path / NAME).unlink()
    with hub_on_this_machine(monkeypatch) as store:
        store.files[NAME] = CONTENT
        hub.status[NAME] = 302
        hub.headers = {"Location": f"{store.address}/a/b/resolve/main/{NAME}", "X-Linked-ETag": f'"{SHA256}"'}
        get()
    assert store.asked[-1][1] is None


def test_nobody_answering_is_said_at_once(get, tmp_path):
    with pytest.raises(NoAnswerError, match="^127.0.0.1:1 does not answer .*: try --mirror"):
        get(mirror="http://127.0.0.1:1")
    assert names(tmp_path) == []


def test_a_proxy_of_an_unknown_kind_is_said(get, monkeypatch):
    monkeypatch.setenv("all_proxy", "gopher://127.0.0.1")
    with pytest.raises(DownloadError, match="proxy"):
        get()


def test_without_network_by_request_is_said(get, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="offline mode is enabled"):
        get()


def test_a_disk_that_fills_up_loses_nothing(hub, get, tmp_path, monkeypatch):
    from huggingface_hub import file_download

    def fill_the_disk(url, file, **_):
        file.write(CONTENT[:150_000])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", fill_the_disk)
        with pytest.raises(OSError, match="No space"):
            get()
    get()
    assert hub.ranges == ["bytes=150000-"]
    assert is_whole(tmp_path)


def test_two_at_once_give_one_right_file(hub, get, tmp_path):
    together, ended = threading.Barrier(4), []

    def run():
        together.wait()
        try:
            ended.append(get())
        except DownloadError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended.count((True, "sha256")) == 1
    assert all("another process" in one for one in ended if isinstance(one, str))
    assert hub.fetched() == 1
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_complete_file_is_not_fetched_again(hub, get, tmp_path):
    get()
    assert get() == (False, "sha256")
    assert get(UNKNOWN) == (False, "rough size")
    assert hub.fetched() == 1
    assert is_whole(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"), [(OTHER, "with the sha256"), (b"short", "of 5 bytes"), (None, "not a file")]
)
def test_a_file_of_the_user_is_never_replaced(hub, get, tmp_path, content, says):
    target = tmp_path / NAME
    target.mkdir() if content is None else target.write_bytes(content)
    with pytest.raises(DownloadError, match=f"{says}.*move it away"):
        get()
    assert hub.fetched() == 0
    assert content is None or target.read_bytes() == content
