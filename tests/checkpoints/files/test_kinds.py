"""A file's kind is told by its first bytes, and nothing but regular files is opened."""

import os
import struct

import pytest

from checkpoints.files.headers import read_header


def safetensors_of_header_length(length):
    return struct.pack("<Q", length) + b"{}".ljust(length)


@pytest.mark.parametrize("start", [b"PK", b" <", b"<!"])
def test_a_header_length_that_spells_another_magic_does_not_mislead(tmp_path, start):
    length = int.from_bytes(start, "little")
    (tmp_path / "w").write_bytes(safetensors_of_header_length(length))
    assert read_header(tmp_path / "w").kind == "safetensors"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>ab{ color: red }", "is a web page"),
        (b"\0" * 5000, "is nothing but zeros"),
        (b"GGUF\x03\0\0\0{", "is a GGUF file"),
        (b"PK\x05\x06" + b"\0" * 18, "is not a weights file"),
    ],
)
def test_what_is_no_weights_file_is_named(tmp_path, content, message):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_header(tmp_path / "w")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with a name")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is a pipe, a socket or a device"):
        read_header(tmp_path / "pipe")


def test_a_device_is_refused(tmp_path):
    with pytest.raises(ValueError, match="null is a pipe, a socket or a device"):
        read_header(type(tmp_path)(os.devnull))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_says_so(tmp_path):
    (tmp_path / "w").write_bytes(b"x")
    (tmp_path / "w").chmod(0)
    with pytest.raises(PermissionError):
        read_header(tmp_path / "w")


def test_a_dangling_link_is_a_missing_file(tmp_path):
    (tmp_path / "w").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="no weights file"):
        read_header(tmp_path / "w")
