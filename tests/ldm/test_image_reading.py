"""Reading: whatever a path holds becomes an upright RGB(A) picture or one sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ldm.image import read_image


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def save(path, array_or_image, **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    image.save(path, **options)
    return path


def png_of_size(path, width, height):
    """A PNG header that promises a picture and holds none."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    return path


def test_rgb_is_read_as_it_is(tmp_path, picture):
    assert np.array_equal(read_image(save(tmp_path / "a.png", picture)), picture)
    assert np.array_equal(read_image(str(tmp_path / "a.png")), picture)


def test_grey_and_bilevel_become_three_channels(tmp_path, picture):
    grey = picture[:, :, 0]
    assert np.array_equal(read_image(save(tmp_path / "l.png", grey)), np.dstack([grey] * 3))
    bilevel = grey > 127
    expected = np.dstack([bilevel * np.uint8(255)] * 3)
    assert np.array_equal(read_image(save(tmp_path / "1.png", Image.fromarray(bilevel))), expected)


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path):
    ramp = np.linspace(0, 65535, 16 * 16).round().astype(np.uint16).reshape(16, 16)
    for name in ("a.png", "a.tif"):
        read = read_image(save(tmp_path / name, ramp))
        assert np.abs(read[:, :, 0] - ramp / 257).max() <= 0.5
        assert (read == read[:, :, :1]).all()


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0, 1e6])
def test_float_and_32_bit_grey_are_read_by_their_largest_value(tmp_path, white):
    ramp = np.linspace(0, white, 64, dtype=np.float32).reshape(8, 8)
    expected = np.linspace(0, 255, 64).reshape(8, 8)
    assert np.abs(read_image(save(tmp_path / "f.tif", ramp))[:, :, 0] - expected).max() <= 0.51
    if white > 255:
        whole = ramp.round().astype(np.int32)
        assert np.abs(read_image(save(tmp_path / "i.tif", whole))[:, :, 0] - expected).max() <= 0.6


def test_float_grey_with_holes_is_read(tmp_path):
    depth = np.full((8, 8), 0.5, np.float32)
    depth[0, :3] = [np.nan, np.inf, -1]
    depth[1, 0] = 1
    read = read_image(save(tmp_path / "f.tif", depth))[:, :, 0]
    assert read[0, :3].tolist() == [0, 0, 0]
    assert read[1, :2].tolist() == [255, 128]


def test_transparency_is_kept_only_where_there_is_any(tmp_path, picture):
    alpha = np.random.default_rng(1).integers(0, 256, picture.shape[:2], np.uint8)
    rgba = np.dstack([picture, alpha])
    assert np.array_equal(read_image(save(tmp_path / "a.png", rgba)), rgba)
    rgba[:, :, 3] = 255
    assert np.array_equal(read_image(save(tmp_path / "b.png", rgba)), picture)
    grey_alpha = Image.merge("LA", [Image.fromarray(picture[:, :, 0]), Image.fromarray(alpha)])
    assert np.array_equal(read_image(save(tmp_path / "c.png", grey_alpha))[:, :, 3], alpha)


def test_palettes_become_their_colours(tmp_path, picture):
    palette = Image.fromarray(picture).quantize(16)
    assert np.array_equal(read_image(save(tmp_path / "p.png", palette)), np.array(palette.convert("RGB")))
    seen = read_image(save(tmp_path / "t.png", palette, transparency=0))
    assert np.array_equal(seen[:, :, 3] == 0, np.array(palette) == 0)


def test_cmyk_looks_like_its_rgb(tmp_path):
    picture = np.full((16, 16, 3), (200, 30, 60), np.uint8)
    read = read_image(save(tmp_path / "a.jpg", Image.fromarray(picture).convert("CMYK"), quality=95))
    assert read.shape == picture.shape
    assert np.abs(read.astype(int) - picture).max() <= 3  # JPEG


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_pictures_stand_as_the_camera_was_held(tmp_path, name, orientation, turn):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / name, Image.fromarray(stored), exif=exif)
    upright = np.rot90(stored, turn)
    assert read_image(path).shape == upright.shape
    assert np.abs(read_image(path).astype(int) - upright).mean() < 5  # JPEG and WebP


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.gif") == (255, 0, 0)).all()


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png: no such file"):
        read_image(tmp_path / "nothing.png")


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(ValueError, match="is a folder, not a picture"):
        read_image(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7", b"\xff\xd8\xff\xe0"])
def test_other_files_are_no_pictures(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png is (no picture|damaged)"):
        read_image(path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff"])
def test_cut_short_files_are_said_to_be_so(tmp_path, picture, kind):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=kind)
    path = tmp_path / "a"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) * 2 // 3])
    with pytest.raises(ValueError, match="damaged or cut short|no picture"):
        read_image(path)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd metadata
@pytest.mark.parametrize("seed", range(30))
def test_damaged_files_raise_one_sentence_or_nothing(tmp_path, picture, seed):
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=["png", "jpeg", "gif", "tiff", "webp"][seed % 5])
    content = bytearray(buffer.getvalue())
    for place in rng.integers(0, len(content), 20):
        content[place] = rng.integers(0, 256)
    path = tmp_path / "a"
    path.write_bytes(content)
    try:
        message = f"{path} {read_image(path).shape}"
    except ValueError as error:
        message = str(error)
    assert message.startswith(str(path))


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_pictures_under_8_pixels_a_side_are_refused(tmp_path, size):
    path = save(tmp_path / "a.png", Image.new("RGB", size))
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels: each side needs at least 8"):
        read_image(path)


@pytest.mark.parametrize("size", [(20_001, 8), (8, 20_001)])
def test_more_than_20000_pixels_a_side_are_refused_before_decoding(tmp_path, size):
    with pytest.raises(ValueError, match="at most 20000 a side, shrink it first"):
        read_image(png_of_size(tmp_path / "a.png", *size))


@pytest.mark.parametrize("side", [20_000, 60_000])
def test_pictures_that_would_fill_the_memory_are_refused_before_decoding(tmp_path, side):
    with pytest.raises(ValueError, match="has over 178,956,970 pixels in all: shrink it first"):
        read_image(png_of_size(tmp_path / "a.png", side, side))


@pytest.mark.filterwarnings("error")
def test_a_large_picture_below_the_limits_gives_no_warning(tmp_path):
    with pytest.raises(ValueError, match="damaged or cut short"):  # only the header is there
        read_image(png_of_size(tmp_path / "a.png", 10_000, 10_000))


def test_a_closed_file_is_said(tmp_path, picture, monkeypatch):
    path = save(tmp_path / "a.png", picture)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(ValueError, match="may not be read: Permission denied"):
        read_image(path)


def test_lab_colours_become_rgb(tmp_path):
    white = Image.merge("LAB", [Image.new("L", (8, 8), level) for level in (255, 128, 128)])
    assert read_image(save(tmp_path / "a.tif", white)).min() >= 250
