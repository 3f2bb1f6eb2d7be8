"""Whatever a server does, the file is on disk complete and right or not at all, and what came is not lost."""

import errno
import hashlib
import random
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.file_server import FileServer, Reply, forget_proxies
from tools.download import fetch as module
from tools.download.catalogue import Published
from tools.download.fetch import CHECKING, FETCHING, Source, check_file, check_space, download, missing_bytes
from tools.download.http import DownloadError, NoAnswerError, NotHereError, open_client
from tools.download.partial import Part

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
LENGTH, SHA256 = len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
CUT = Reply(CONTENT, cut=100_000)
WHOLE = Reply(CONTENT)


def published(size=LENGTH, sha256=SHA256):
    return Published("someone/something", "weights.pth", 0.0, size, sha256)


UNKNOWN = published(None, None)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Seconds that were waited; nobody waits in earnest, and nobody comes between us and the server."""
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        assert len(waited) < 100, "the tries have no end"

    forget_proxies(monkeypatch)
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep))
    return waited


@pytest.fixture
def serve():
    with ExitStack() as stack:
        yield lambda *replies: stack.enter_context(FileServer(*replies).running())


@pytest.fixture
def get(tmp_path):
    """Fetch from a server, or an address, into tmp_path."""
    with open_client() as client:

        def get(server, what=None, report=lambda *_: None):
            url = server if isinstance(server, str) else what_url(server)
            return download(Source(client, what or published(), url), tmp_path / "weights.pth", report)

        yield get


def what_url(server):
    return published().url(server.url)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def is_whole(folder):
    return names(folder) == ["weights.pth"] and (folder / "weights.pth").read_bytes() == CONTENT


def test_a_file_comes_whole_and_nothing_lies_beside_it(serve, get, tmp_path):
    server, seen = serve(WHOLE), []
    assert get(server, report=lambda *one: seen.append(one)) == (True, "sha256")
    assert is_whole(tmp_path)
    assert server.requests[0][0] == "/someone/something/resolve/main/weights.pth"
    assert seen[0] == (FETCHING, 0, LENGTH)
    assert (FETCHING, LENGTH, LENGTH) in seen
    assert seen[-1] == (CHECKING, LENGTH, LENGTH)


def test_a_cut_connection_goes_on_where_it_ended(serve, get, tmp_path, pauses):
    server = serve(CUT, CUT, WHOLE)
    get(server)
    assert is_whole(tmp_path)
    assert server.ranges() == [None, "bytes=100000-", "bytes=200000-"]
    assert pauses == [1, 2]


def test_a_server_that_ignores_ranges_is_asked_from_the_beginning(serve, get, tmp_path):
    deaf = Reply(CONTENT, ranges=False)
    server = serve(Reply(CONTENT, ranges=False, cut=100_000), deaf)
    get(server)
    assert is_whole(tmp_path)
    assert server.ranges() == [None, "bytes=100000-"]


def test_tries_are_bounded_and_the_part_goes_on_later(serve, get, tmp_path, pauses):
    server = serve(CUT, Reply(CONTENT, cut=0))
    with pytest.raises(NotHereError, match=r"6 times.*100,000 bytes.*goes on from there"):
        get(server)
    assert len(server.requests) == module.TRIES
    assert pauses == [1, 2, 4, 8, 16]
    assert "weights.pth" not in names(tmp_path)
    assert missing_bytes(published(), tmp_path / "weights.pth") == 200_000
    later = serve(WHOLE)
    get(later)
    assert is_whole(tmp_path)
    assert later.ranges() == ["bytes=100000-"]


def test_connections_that_bring_much_are_no_failures(serve, get, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GOOD_PIECE", 20_000)
    get(serve(Reply(CONTENT, cut=20_000)))
    assert is_whole(tmp_path)


def test_starting_over_again_and_again_is_no_progress(serve, get, monkeypatch):
    monkeypatch.setattr(module, "GOOD_PIECE", 100_000)
    server = serve(Reply(CONTENT, ranges=False, cut=100_000))
    with pytest.raises(NotHereError):
        get(server)
    assert len(server.requests) <= module.TRIES + 1


@pytest.mark.parametrize("replies", [[Reply(OTHER)], [Reply(OTHER, cut=100_000), WHOLE]], ids=["all", "half"])
def test_wrong_bytes_are_deleted(serve, get, tmp_path, replies):
    with pytest.raises(NotHereError, match=r"not the published ones .*deleted$"):
        get(serve(*replies))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (Reply(CONTENT[:-1]), published()),
        (Reply(b"<html>log in, please</html>"), Published("a/b", "weights.pth", 1.45)),
        (Reply(CONTENT, headers={"X-Linked-ETag": f'"{"0" * 64}"'}), published()),
    ],
    ids=["size", "web page", "checksum"],
)
def test_another_file_is_refused_before_it_comes_and_the_part_stays(serve, get, tmp_path, reply, what):
    with pytest.raises(NotHereError):
        get(serve(CUT, Reply(status=404)))
    with pytest.raises(NotHereError, match="another file"):
        get(serve(reply), what)
    assert (tmp_path / "weights.pth.part").read_bytes() == CONTENT[:100_000]


@pytest.mark.parametrize("obeys", [True, False], ids=["obeys If-Range", "ignores If-Range"])
def test_a_file_that_changed_meanwhile_is_fetched_from_its_beginning(serve, get, tmp_path, obeys):
    server = serve(Reply(OTHER, cut=100_000, tag='"old"'), Reply(CONTENT, tag='"new"', if_range=obeys))
    assert get(server, UNKNOWN) == (True, "size")
    assert is_whole(tmp_path)
    assert server.requests[1][1]["If-Range"] == '"old"'


def test_a_file_that_became_shorter_is_fetched_from_its_beginning(serve, get, tmp_path):
    get(serve(Reply(OTHER * 2, cut=400_000), WHOLE), UNKNOWN)
    assert is_whole(tmp_path)


def test_a_piece_from_another_place_is_not_taken(serve, get, tmp_path):
    get(serve(CUT, Reply(CONTENT, shift=-10), WHOLE))
    assert is_whole(tmp_path)


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_a_part_that_nothing_identifies_is_not_gone_on_with(serve, get, tmp_path, tag):
    server = serve(Reply(OTHER, cut=100_000, tag=tag), Reply(CONTENT, tag=tag))
    get(server, UNKNOWN)
    assert is_whole(tmp_path)
    assert server.ranges() == [None, None]


def test_a_date_identifies_a_part_as_a_tag_does(serve, get, tmp_path):
    dated = {"Last-Modified": "Sat, 21 Nov 2026 05:43:14 GMT"}
    server = serve(
        Reply(CONTENT, cut=100_000, tag=None, headers=dated),
        Reply(CONTENT, if_range=False, headers=dated, tag=None),
    )
    get(server, UNKNOWN)
    assert is_whole(tmp_path)
    assert server.requests[1][1]["If-Range"] == dated["Last-Modified"]


def test_without_a_length_the_checksum_or_the_known_size_tells_the_end(serve, get, tmp_path):
    endless = Reply(CONTENT, length=False)
    assert get(serve(endless), published(size=None)) == (True, "sha256")
    (tmp_path / "weights.pth").unlink()
    server = serve(Reply(CONTENT, length=False, cut=100_000), endless)
    assert get(server, published(sha256=None)) == (True, "size")
    assert server.ranges() == [None, "bytes=100000-"]
    assert is_whole(tmp_path)


def test_more_bytes_than_the_known_size_are_wrong(serve, get, tmp_path):
    with pytest.raises(NotHereError, match="300,001 bytes instead of 300,000"):
        get(serve(Reply(CONTENT + b"!", length=False)), published(sha256=None))
    assert names(tmp_path) == []


def test_without_length_and_checksum_nothing_is_fetched(serve, get, tmp_path):
    with pytest.raises(NotHereError, match="neither its length nor its checksum"):
        get(serve(Reply(CONTENT, length=False)), UNKNOWN)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("what", "start"), [(published(), "bytes=100000-"), (UNKNOWN, None)])
def test_a_part_goes_on_at_another_mirror_if_a_checksum_vouches_for_it(serve, get, tmp_path, what, start):
    with pytest.raises(NotHereError):
        get(serve(CUT, Reply(status=404)), what)
    other = serve(Reply(CONTENT, tag='"another"'))
    get(other, what)
    assert is_whole(tmp_path)
    assert other.ranges() == [start]


def linked(target, content=CONTENT):
    """The hub's redirect to the host that has the bytes."""
    sha256 = hashlib.sha256(content).hexdigest()
    headers = {
        "Location": f"{target.url}/blob",
        "X-Linked-ETag": f'"{sha256}"',
        "X-Linked-Size": str(len(content)),
    }
    return Reply(status=302, headers=headers)


def test_what_the_hub_says_behind_its_redirect_is_the_checksum(serve, get, tmp_path):
    assert get(serve(linked(serve(WHOLE))), UNKNOWN) == (True, "sha256")
    assert is_whole(tmp_path)


def test_bytes_that_the_hub_did_not_announce_are_deleted(serve, get, tmp_path):
    with pytest.raises(NotHereError, match="deleted"):
        get(serve(linked(serve(Reply(OTHER)))), UNKNOWN)
    assert names(tmp_path) == []


def test_a_part_goes_on_though_each_request_is_led_to_another_tag(serve, get, tmp_path):
    hosts = serve(CUT), serve(Reply(CONTENT, tag='"another"'))
    server = serve(*map(linked, hosts))
    get(server, UNKNOWN)
    assert is_whole(tmp_path)
    assert hosts[1].ranges() == ["bytes=100000-"]
    assert "If-Range" not in hosts[1].requests[0][1]


def test_what_the_hub_said_is_the_checksum_at_a_silent_mirror_too(serve, get, tmp_path):
    with pytest.raises(NotHereError):
        get(serve(linked(serve(CUT)), Reply(status=404)), UNKNOWN)
    mirror = serve(WHOLE)
    assert get(mirror, UNKNOWN) == (True, "sha256")
    assert mirror.ranges() == ["bytes=100000-"]


def test_a_file_that_the_hub_replaced_meanwhile_is_fetched_from_its_beginning(serve, get, tmp_path):
    old, new = serve(Reply(OTHER, cut=100_000)), serve(WHOLE)
    get(serve(linked(old, OTHER), linked(new)), UNKNOWN)
    assert is_whole(tmp_path)
    assert new.ranges() == ["bytes=100000-", None]


def test_a_busy_server_is_asked_again_when_it_says(serve, get, tmp_path, pauses):
    busy = Reply(status=503, headers={"Retry-After": "7"})
    get(serve(busy, Reply(status=429, headers={"Retry-After": "9999"}), Reply(status=500), WHOLE))
    assert pauses == [7, module.LONGEST_PAUSE, 4]
    assert is_whole(tmp_path)


def test_a_server_that_is_not_there_is_said_at_once(get, tmp_path, pauses):
    with FileServer().running() as gone:
        pass
    with pytest.raises(NoAnswerError, match="127.0.0.1.* does not answer"):
        get(gone)
    assert not pauses
    assert names(tmp_path) == []


def test_a_server_that_goes_away_in_between_is_waited_for(serve, get, tmp_path, pauses):
    with ExitStack() as stack:
        server = stack.enter_context(FileServer(CUT).running())

        def stop_after_some(doing, done, total):
            if done >= 100_000:
                threading.Thread(target=stack.close).start()
                server.stopping.wait()

        with pytest.raises(NotHereError, match="6 times"):
            get(server, report=stop_after_some)
    assert len(pauses) == module.TRIES - 1


def free(monkeypatch, count):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=count))


def test_a_disk_with_too_little_room_is_said_before_anything_comes(serve, get, tmp_path, monkeypatch):
    free(monkeypatch, module.SPARE_BYTES + LENGTH - 1)
    with pytest.raises(DownloadError, match="GB left.*--dest"):
        get(serve(WHOLE))
    assert "weights.pth.part" not in names(tmp_path)
    with pytest.raises(DownloadError):
        check_space(tmp_path / "not/yet/there", LENGTH)
    check_space(tmp_path, 0)


def test_only_what_is_still_missing_must_have_room(serve, get, tmp_path, monkeypatch):
    with pytest.raises(NotHereError):
        get(serve(CUT, Reply(status=404)))
    free(monkeypatch, module.SPARE_BYTES + 200_000)
    get(serve(WHOLE))
    assert is_whole(tmp_path)


class SmallDisk:
    """A file that has no room behind byte 150,000."""

    def __init__(self, file):
        self.file = file

    def write(self, chunk):
        room = 150_000 - self.file.tell()
        self.file.write(chunk[:room])
        if room < len(chunk):
            raise OSError(errno.ENOSPC, "No space left on device")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def test_a_disk_that_fills_up_loses_nothing(serve, get, tmp_path, monkeypatch):
    real = Path.open

    def small_disk(path, mode="r", **options):
        file = real(path, mode, **options)
        return SmallDisk(file) if mode == "ab" else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", small_disk)
        with pytest.raises(OSError, match="No space"):
            get(serve(WHOLE), published())
    server = serve(WHOLE)
    get(server)
    assert server.ranges() == ["bytes=150000-"]
    assert is_whole(tmp_path)


@pytest.mark.parametrize("doing", [FETCHING, CHECKING])
def test_ctrl_c_leaves_a_part_that_goes_on(serve, get, tmp_path, doing):
    def stop(now, done, total):
        if now == doing and done >= 150_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(serve(WHOLE), report=stop)
    kept = (tmp_path / "weights.pth.part").read_bytes()
    assert len(kept) >= 150_000
    assert CONTENT.startswith(kept)
    server = serve(WHOLE)
    get(server)
    assert is_whole(tmp_path)
    assert server.ranges() == ([f"bytes={len(kept)}-"] if len(kept) < LENGTH else [])


def test_one_process_at_a_time(serve, get, tmp_path):
    server = serve(WHOLE)
    with Part(tmp_path / "weights.pth").held(), pytest.raises(BlockingIOError, match=r"weights.pth: wait"):
        get(server)
    assert not server.requests


def test_two_at_once_give_one_right_file(serve, tmp_path):
    server, ended = serve(WHOLE), []

    def fetch(together):
        with open_client() as client:
            together.wait()
            try:
                source = Source(client, published(), what_url(server))
                ended.append(download(source, tmp_path / "weights.pth", lambda *_: None))
            except BlockingIOError as error:
                ended.append(error)

    together = threading.Barrier(4)
    threads = [threading.Thread(target=fetch, args=(together,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended.count((True, "sha256")) == 1
    assert len(server.requests) == 1
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_a_complete_file_is_not_fetched_again(serve, get, tmp_path):
    server = serve(WHOLE)
    get(server)
    assert get(server) == (False, "sha256")
    assert get(server, UNKNOWN) == (False, "rough size")
    assert len(server.requests) == 1
    assert missing_bytes(published(), tmp_path / "weights.pth") == 0
    assert is_whole(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"), [(OTHER, "not the published ones"), (b"short", "of 5 bytes"), (None, "not a file")]
)
def test_a_file_of_the_user_is_never_replaced(serve, get, tmp_path, content, says):
    target = tmp_path / "weights.pth"
    target.mkdir() if content is None else target.write_bytes(content)
    server = serve(WHOLE)
    with pytest.raises(DownloadError, match=f"{says}.*move it away"):
        get(server)
    with pytest.raises(DownloadError, match=says):
        check_file(target, published(), lambda *_: None)
    assert not server.requests
    assert content is None or target.read_bytes() == content
