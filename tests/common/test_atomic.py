"""Files and folders are whole or not there."""

import errno
import resource
from pathlib import Path

import pytest

from common.atomic import MIB, atomic_write, check_space


def write(path, make, error=None):
    with atomic_write(path) as partial:
        make(partial)
        if error:
            raise error


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_with_its_folder_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "deep" / "er" / "a.bin"
    for content in (b"old", b"new"):
        with atomic_write(path) as partial:
            partial.write_bytes(content)
            assert partial.parent == path.parent
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["a.bin"]


def test_a_folder_replaces_a_full_one(tmp_path):
    path = tmp_path / "model"
    for content in ("old", "new"):
        with atomic_write(path) as partial:
            partial.mkdir()
            (partial / content).touch()
    assert names(path) == ["new"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no")])
@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_an_interruption_leaves_what_was_there_and_nothing_else(tmp_path, error, make):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        write(path, make, error)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a\.bin was not written: File too large$"):
            write(tmp_path / "a.bin", lambda partial: partial.write_bytes(bytes(5000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not names(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_one_sentence_too(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(OSError, match="was not written: (File exists|Not a directory)$"):
        write(tmp_path / "taken" / "a.bin", Path.touch)


def test_a_folder_that_cannot_be_moved_away_stays(tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").touch()
    replace = Path.replace

    def refuse(self, target):
        if self.suffix == ".partial":
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="model was not written: Input/output error"):
        write(path, Path.mkdir)
    assert names(path) == ["old"]
    assert names(tmp_path) == ["model"]


def test_names_as_long_as_the_system_allows_can_be_written(tmp_path):
    write(tmp_path / ("n" * 255), Path.touch)
    assert names(tmp_path) == ["n" * 255]


def test_room_is_asked_for_where_the_file_is_to_be_without_making_anything(tmp_path):
    check_space(tmp_path / "not" / "there" / "a.bin", 1)
    with pytest.raises(OSError, match=r"needs 1099511627776 MiB, but \d+ MiB are free in"):
        check_space(tmp_path / "not" / "a.bin", MIB * 2**40)
    assert not names(tmp_path)
