"""Images: files to arrays, arrays to tensors, and back.

Arrays are uint8 in RGB order, [H W 3], or [H W 4] where something is transparent. Whatever a file holds
(grey, 16-bit, CMYK, palette, a camera's rotation flag) becomes that. PNG files carry their request as text,
so that the image can be made again from the file alone.
"""

import json
import struct
import textwrap
import warnings
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin
from torch import Tensor

from common.atomic import atomic_write

IMAGE_SUFFIXES = (  # of what Pillow reads, those of pictures that a folder may hold
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif", ".ppm",
    ".pgm",
)  # fmt: skip
MIN_SIDE = 8  # one latent pixel
MAX_SIDE = 20_000  # pixels, whatever the other side
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow itself refuses: 0.5 GB of RGB
WHITE_16_BIT = 65535  # what a camera or scanner calls white
WEB_FORMATS = ("PNG", "JPEG", "WEBP")  # of strangers' pictures: Pillow reads some others by running programs
LABEL_LINES = 14  # a label may fill the side of a cell with about so many lines
# What Pillow's decoders raise on damaged files.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError, struct.error, zlib.error)


def image_to_hint(control_map: np.ndarray, n: int) -> Tensor:
    """A control map, uint8 [H W 3], as `n` equal hints: float [n 3 H W] in [0, 1]."""
    hint = torch.from_numpy(np.ascontiguousarray(control_map)).float() / 255.0
    return repeat(hint, "H W c -> n c H W", n=n).contiguous()


def image_to_model(image: np.ndarray) -> Tensor:
    """An image, uint8 [H W 3], as the autoencoder's input: float [1 3 H W] in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).float() / 127.5 - 1.0
    return rearrange(pixels, "H W c -> 1 c H W").contiguous()


def model_to_images(pixels: Tensor) -> list[np.ndarray]:
    """The autoencoder's output, float [n 3 H W] around [-1, 1], as n images uint8 [H W 3].

    Rounds to the nearest level (the published scripts round down). ValueError for NaN, which would turn
    black.
    """
    pixels = pixels.detach().float().cpu()
    if pixels.isnan().any():
        raise ValueError("the decoded picture contains NaN: decode in fp32")
    levels = (pixels * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return list(rearrange(levels, "n c H W -> n H W c").contiguous().numpy())


def read_image(path: str | Path) -> np.ndarray:
    """The image in a file, upright: uint8 [H W 3], or [H W 4] where something is transparent.

    Of an animation the first frame. FileNotFoundError or ValueError in one sentence for whatever else lies
    at `path`; the size is checked before any pixel is decoded.
    """
    return _to_pixels(_load(Path(path)))


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The image in `data`, what a PNG, JPEG or WebP file holds, as `read_image`; errors call it `name`."""
    return _to_pixels(_decode(BytesIO(data), name, max_pixels, WEB_FORMATS))


def write_png(path: str | Path, image: np.ndarray, text: dict[str, object] | None = None) -> Path:
    """Write uint8 [H W], [H W 3] or [H W 4] with `text` inside, whole or not at all; makes the folder.

    Strings of `text` may hold any Unicode; other values are stored as JSON. Errors as `atomic_write`.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: only PNG can carry the request of a picture, name it {path.stem}.png")
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.ndim == 3 and image.shape[2] in (3, 4)):
        got = f"{image.dtype} {image.shape}"
        raise TypeError(f"{path}: a picture to write is uint8 [H W] or [H W 3 or 4], got {got}")
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    with atomic_write(path) as partial:
        Image.fromarray(np.ascontiguousarray(image)).save(partial, format="PNG", pnginfo=info)
    return path


def read_png_text(path: str | Path, max_pixels: int = MAX_PIXELS) -> dict[str, str]:
    """The text that `write_png` stored, empty where there is none. ValueError unless the file is a PNG."""
    image = _load(Path(path), max_pixels)
    if not isinstance(image, PngImagePlugin.PngImageFile):
        raise ValueError(f"{path} is no PNG: only PNG pictures carry their request")
    return {key: str(value) for key, value in image.text.items()}


def labelled_grid(
    rows: Sequence[Sequence[np.ndarray]], row_labels: Sequence[str], column_labels: Sequence[str],
    cell: int = 256,
) -> np.ndarray:  # fmt: skip
    """A table of images, labelled at the left and on top: uint8 [H W 3].

    Each image is fitted, whole, into a square of `cell` pixels on white. ValueError when labels and
    images do not match in number. Pillow's own font is used: Latin letters only.
    """
    if len(rows) != len(row_labels) or {len(row) for row in rows} != {len(column_labels)}:
        got = f"{len(row_labels)} row and {len(column_labels)} column labels"
        have = [len(row) for row in rows]
        raise ValueError(f"{got} do not fit rows of {have} pictures: give one label each")
    gap, left, top = cell // 32 + 1, cell * 2 // 3, cell // 4
    step = cell + gap
    page = Image.new("RGB", (left + step * len(column_labels), top + step * len(rows)), "white")
    for column, label in enumerate(column_labels):
        _write_label(page, label, (left + column * step, 0, cell, top), cell)
    for row, label in enumerate(row_labels):
        _write_label(page, label, (0, top + row * step, left, cell), cell)
        for column, image in enumerate(rows[row]):
            fitted = ImageOps.pad(Image.fromarray(image).convert("RGB"), (cell, cell), color="white")
            x, y = left + column * step, top + row * step
            ImageDraw.Draw(page).rectangle((x - 1, y - 1, x + cell, y + cell), outline="lightgrey")
            page.paste(fitted, (x, y))
    return np.array(page)


def _load(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The decoded, upright image, still in its own mode."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a picture: name a file in it")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    return _decode(path, str(path), max_pixels)


def _decode(
    source: Path | BytesIO, name: str, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limits are below
            image = Image.open(source, formats=formats)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has over {max_pixels:,} pixels in all: shrink it first") from error
    except PermissionError as error:
        raise ValueError(f"{name} may not be read: {error.strerror}") from error
    except DAMAGE as error:
        raise ValueError(f"{name} is no picture that can be read: give a PNG, JPEG or WebP file") from error
    with image:
        _check_size(name, *image.size, max_pixels)
        try:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
        except DAMAGE as error:
            raise ValueError(f"{name} is damaged or cut short: {error}") from error
    return image


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{name} is {width}x{height} pixels: each side needs at least {MIN_SIDE}")
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"{name} is {width}x{height} pixels: at most {MAX_SIDE} a side, shrink it first")
    if width * height > max_pixels:
        raise ValueError(f"{name} has over {max_pixels:,} pixels in all: shrink it first")


def _to_pixels(image: Image.Image) -> np.ndarray:
    """Any mode of Pillow as uint8 [H W 3], or [H W 4] where something is transparent."""
    if image.mode.startswith("I") or image.mode == "F":
        levels = _to_eight_bits(np.asarray(image))
        return np.repeat(levels[:, :, None], 3, axis=2)
    see_through = image.has_transparency_data
    pixels = np.array(image.convert("RGBA" if see_through else "RGB"))
    return pixels[:, :, :3] if see_through and pixels[:, :, 3].min() == 255 else pixels


def _to_eight_bits(levels: np.ndarray) -> np.ndarray:
    """16-bit, 32-bit or float grey [H W] as uint8; white is 65535, or 1, 255 or the largest value."""
    if levels.dtype.kind == "u":
        white = WHITE_16_BIT
    else:
        levels = np.nan_to_num(levels.astype(np.float64), posinf=0).clip(0)
        top = levels.max()
        white = next(white for white in (1, 255, WHITE_16_BIT, top) if top <= white)
    return (levels / white * 255).round().astype(np.uint8)


def _write_label(page: Image.Image, label: str, box: tuple[int, int, int, int], cell: int) -> None:
    """Black text, wrapped and centred in `box` (left, top, width, height)."""
    font = ImageFont.load_default(size=max(9, cell // LABEL_LINES))
    left, top, width, height = box
    lines = textwrap.wrap(label, max(1, int(width / font.getlength("n"))))
    centre = (left + width / 2, top + height / 2)
    options = {"fill": "black", "font": font, "anchor": "mm", "align": "center"}
    ImageDraw.Draw(page).multiline_text(centre, "\n".join(lines), **options)
