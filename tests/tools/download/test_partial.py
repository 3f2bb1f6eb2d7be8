"""A part says what its bytes belong to, and one process at a time has it."""

import json
from dataclasses import replace

import pytest

from tools.download.partial import Origin, Part

URL = "https://huggingface.co/a/b/resolve/main/x.pth"
TOLD = Origin(URL, 1000, "a" * 64, '"one"')
TAGGED = Origin(URL, 1000, None, '"one"')
NAMELESS = Origin(URL, 1000, None, None)


@pytest.fixture
def part(tmp_path):
    return Part(tmp_path / "x.pth")


def test_bytes_and_their_origin_are_kept_together(part):
    assert (part.length(), part.origin()) == (0, None)
    part.begin(TOLD)
    assert part.origin() is None
    part.path.write_bytes(bytes(10))
    assert (Part(part.target).length(), Part(part.target).origin()) == (10, TOLD)
    part.begin(TAGGED)
    assert (part.length(), part.origin()) == (0, None)
    part.path.write_bytes(bytes(10))
    part.finish()
    assert [path.name for path in part.target.parent.iterdir()] == ["x.pth"]


LONGER = json.dumps({"url": URL, "size": 9, "sha256": None, "validator": None}).encode()


@pytest.mark.parametrize("note", [None, b"", b"\xff", b"[]", b"{}", b'{"url": 1}', LONGER])
def test_bytes_of_unknown_origin_have_none(part, note):
    part.begin(TOLD)
    part.path.write_bytes(bytes(10))
    (path,) = part.target.parent.glob("*.json")
    path.unlink() if note is None else path.write_bytes(note)
    assert part.origin() is None


@pytest.mark.parametrize(
    ("origin", "here", "elsewhere"), [(TOLD, True, True), (TAGGED, True, False), (NAMELESS, False, False)]
)
def test_a_checksum_tells_everywhere_and_a_tag_where_it_was_given(origin, here, elsewhere):
    assert origin.is_told(URL) is here
    assert origin.is_told("https://hf-mirror.com/x.pth") is elsewhere


@pytest.mark.parametrize(
    ("origin", "change", "same"),
    [
        (TOLD, {}, True),
        (TOLD, {"validator": '"two"', "url": "elsewhere"}, True),
        (TOLD, {"sha256": None}, True),
        (TOLD, {"sha256": "b" * 64}, False),
        (TOLD, {"size": 1001}, False),
        (TAGGED, {}, True),
        (TAGGED, {"sha256": "a" * 64}, True),
        (TAGGED, {"validator": '"two"'}, False),
        (TAGGED, {"size": 999}, False),
    ],
)
def test_bytes_are_joined_only_if_they_are_of_one_file(origin, change, same):
    assert origin.is_same(replace(origin, **change)) is same


def test_the_lock_goes_with_the_part(part):
    lock = part.target.with_name("x.pth.lock")
    with part.held():
        assert lock.exists()
        with pytest.raises(BlockingIOError, match="x.pth: wait for it"), Part(part.target).held():
            pass
    assert not lock.exists()
    with part.held():
        part.path.write_bytes(bytes(10))
    with Part(part.target).held():
        part.drop()
    assert not lock.exists()
