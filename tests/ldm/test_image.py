import json
import os
import resource

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.image import (
    image_to_hint,
    image_to_model,
    labelled_grid,
    model_to_images,
    read_image,
    read_png_text,
    write_png,
)


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def save(path, array_or_image, **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    image.save(path, **options)
    return path


# Tensors


def test_a_hint_is_the_map_in_0_to_1_once_for_each_picture(picture):
    hint = image_to_hint(picture, 3)
    assert hint.shape == (3, 3, 24, 40)
    assert hint.dtype == torch.float32
    assert hint.is_contiguous()
    for one in hint:
        assert torch.equal((one * 255).round().to(torch.uint8), torch.from_numpy(picture).permute(2, 0, 1))
    assert image_to_hint(np.full((8, 8, 3), 255, np.uint8), 1).max() == 1


def test_the_autoencoder_sees_minus_one_to_one(picture):
    picture[0, 0], picture[0, 1] = 0, 255
    pixels = image_to_model(picture)
    assert pixels.shape == (1, 3, 24, 40)
    assert (pixels.min(), pixels.max()) == (-1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_level_survives_the_way_to_the_model_and_back(dtype):
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    (back,) = model_to_images(image_to_model(levels).to(dtype))
    assert np.array_equal(back, levels)


def test_flipped_views_are_pictures_too(picture):
    mirrored = picture[:, ::-1]
    assert np.array_equal(model_to_images(image_to_model(mirrored))[0], mirrored)


def test_values_beyond_the_range_are_clipped():
    pixels = torch.tensor([-3.0, 0.0, 3.0]).reshape(1, 3, 1, 1).expand(2, 3, 8, 8)
    images = model_to_images(pixels)
    assert len(images) == 2
    assert images[0][0, 0].tolist() == [0, 128, 255]


def test_not_a_number_is_an_error_and_no_black_picture():
    with pytest.raises(ValueError, match="NaN: decode in fp32"):
        model_to_images(torch.full((1, 3, 8, 8), float("nan"), dtype=torch.float16))


# Writing


@pytest.mark.parametrize("channels", [0, 3, 4])
def test_what_is_written_is_read_back(tmp_path, channels):
    shape = (16, 24, channels) if channels else (16, 24)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    read = read_image(write_png(tmp_path / "deep" / "er" / "a.png", image))
    assert np.array_equal(read, image if channels else np.dstack([image] * 3))


def test_text_comes_back_letter_by_letter(tmp_path, picture):
    request = json.dumps({"prompt": '청록색 원 🎨 \n«Ü» "quoted"', "scale": 9.0}, ensure_ascii=False)
    path = write_png(
        tmp_path / "a.png", picture, {"request": request, "seed": "7", "empty": "", "long": "x" * 10**5}
    )
    assert read_png_text(path) == {"request": request, "seed": "7", "empty": "", "long": "x" * 10**5}
    assert np.array_equal(read_image(path), picture)


def test_other_values_come_back_as_json(tmp_path, picture):
    path = write_png(tmp_path / "a.png", picture, {"seed": 7, "request": {"steps": 20, "prompt": "é"}})
    assert {key: json.loads(value) for key, value in read_png_text(path).items()} == {
        "seed": 7,
        "request": {"steps": 20, "prompt": "é"},
    }


def test_the_same_picture_and_text_give_the_same_bytes(tmp_path, picture):
    first, second = (write_png(tmp_path / name, picture, {"seed": "1"}) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()


def test_a_png_without_text_gives_none(tmp_path, picture):
    assert read_png_text(save(tmp_path / "a.png", picture)) == {}


def test_only_png_has_text(tmp_path, picture):
    with pytest.raises(ValueError, match="is no PNG"):
        read_png_text(save(tmp_path / "a.jpg", picture))


def test_pictures_are_written_as_png_only(tmp_path, picture):
    with pytest.raises(ValueError, match=r"name it a\.png"):
        write_png(tmp_path / "a.jpg", picture)


@pytest.mark.parametrize("wrong", [np.zeros((8, 8, 3)), np.zeros((8, 8, 2), np.uint8), np.zeros(8, np.uint8)])
def test_only_uint8_pictures_are_written(tmp_path, wrong):
    with pytest.raises(TypeError, match="a picture to write is uint8"):
        write_png(tmp_path / "a.png", wrong)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_picture_and_nothing_else(tmp_path, picture):
    path = write_png(tmp_path / "a.png", picture)
    before = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a\.png was not written: File too large"):
            write_png(path, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == before


def test_an_interruption_leaves_nothing_half_written(tmp_path, picture, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_png(tmp_path / "a.png", picture)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path, picture):
    (tmp_path / "out").write_text("")
    with pytest.raises(OSError, match=r"a\.png was not written: (File exists|Not a directory)"):
        write_png(tmp_path / "out" / "a.png", picture)


def test_a_folder_in_the_place_of_the_file_is_said(tmp_path, picture):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError, match=r"a\.png was not written: Is a directory"):
        write_png(tmp_path / "a.png", picture)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


# The grid


def test_a_grid_holds_every_picture_in_its_place():
    colours = [[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(9, 9, 9), (0, 99, 99), (99, 0, 99)]]
    sides = iter([(64, 64), (16, 16), (200, 200), (64, 64), (32, 32), (8, 8)])
    rows = [[np.full((*next(sides), 3), colour, np.uint8) for colour in row] for row in colours]
    grid = labelled_grid(rows, ["first", "second"], ["a", "b", "c"], cell=64)
    assert grid.dtype == np.uint8
    places = np.array([[np.argwhere((grid == c).all(axis=2)).mean(axis=0) for c in row] for row in colours])
    counts = [[(grid == c).all(axis=2).sum() for c in row] for row in colours]
    assert counts == [[64 * 64] * 3] * 2, "each picture fills its cell"
    assert (np.diff(places[:, :, 0], axis=0) > 64).all(), "rows go down"
    assert (np.diff(places[:, :, 1], axis=1) > 64).all(), "columns go right"


def test_labels_change_the_margin_and_nothing_else(picture):
    plain, labelled = (
        labelled_grid([[picture]], [name], ["column " + name]) for name in ("", "row of words")
    )
    changed = np.argwhere((plain != labelled).any(axis=2))
    assert len(changed)
    margin_bottom, margin_right = 256 // 4, 256 * 2 // 3
    assert ((changed[:, 0] < margin_bottom) | (changed[:, 1] < margin_right)).all()


def test_grey_and_transparent_pictures_fit_into_a_grid(picture):
    grey, rgba = picture[:, :, 0], np.dstack([picture, picture[:, :, 0]])
    assert labelled_grid([[picture, grey, rgba]], ["row"], ["rgb", "grey", "rgba"]).ndim == 3


@pytest.mark.parametrize(("rows", "columns"), [(["a"], ["b"]), (["a", "b"], ["c"]), ([], [])])
def test_labels_must_fit_the_pictures(picture, rows, columns):
    with pytest.raises(ValueError, match=r"do not fit rows of \[2\] pictures"):
        labelled_grid([[picture, picture]], rows, columns)
