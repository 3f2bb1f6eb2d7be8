"""A data URL becomes the picture it holds or one sentence, whoever wrote it."""

import base64
import struct
import zlib

import numpy as np
import pytest

from app import data_url
from app.data_url import decode_data_url, png_data_url

HEAD = "data:image/png;base64,"


def encoded(data, head=HEAD):
    return head + base64.b64encode(data).decode()


def png_header(width, height):
    """A PNG that promises a size and holds nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [3, 4])
def test_a_picture_survives_the_way_there_and_back(channels):
    image = np.random.default_rng(0).integers(0, 255, (9, 12, channels), dtype=np.uint8)
    assert np.array_equal(decode_data_url(png_data_url(image), "it"), image)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, "is no picture: give a data URL"),
        (3, "is no picture: give a data URL"),
        ({"path": "x.png"}, "is no picture: give a data URL"),
        ("", "is no picture: give a data URL"),
        ("https://example.com/x.png", "is no picture: give a data URL"),
        ("data:text/html;base64,PGI+", "is no picture: give a data URL"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "is no picture: give a data URL"),
        (HEAD + "not base64!", "is not base64"),
        (HEAD + "é", "is not base64"),
        (HEAD, "is no picture that can be read"),
        (encoded(b"hello"), "is no picture that can be read"),
        (encoded(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n"), "is no picture that can be read"),
        (encoded(png_header(64, 64)), "is damaged or cut short"),
        (encoded(png_header(20_001, 8)), "at most 20000 a side"),
        (encoded(png_header(4, 64)), "each side needs at least 8"),
        (encoded(png_header(3000, 3000)), "over 4,000,000 pixels"),
        (encoded(png_header(100_000, 100_000)), "over 4,000,000 pixels"),
    ],
)
def test_anything_else_is_one_sentence(value, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        decode_data_url(value, "the drawing")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("the drawing ")


def test_what_is_too_long_is_not_decoded(monkeypatch):
    monkeypatch.setattr(data_url, "MAX_CHARACTERS", 100)
    monkeypatch.setattr(base64, "b64decode", None)
    with pytest.raises(ValueError, match="at most 100 are taken"):
        decode_data_url(HEAD + "A" * 100, "it")
