import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotator.util import HWC3, MAX_SIDE, flatten_map, nms, resize_image, safe_step, scribbled, target_size


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def published_size(height, width, resolution):
    """The published arithmetic, step by step in floats."""
    k = float(resolution) / min(float(height), float(width))
    return tuple(int(np.round(np.float64(side) * k / 64.0)) * 64 for side in (height, width))


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(64, 1024))
@settings(max_examples=300, deadline=None)
def test_any_size_becomes_the_published_multiple_of_64(height, width, resolution):
    expected = published_size(height, width, resolution)
    if max(expected) > MAX_SIDE:
        with pytest.raises(ValueError, match="crop it"):
            target_size(height, width, resolution)
        return
    assert target_size(height, width, resolution) == expected
    assert all(side % 64 == 0 and side >= 64 for side in expected)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (100, 333), (640, 480), (512, 512), (700, 129)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resized_pictures_have_the_target_size_and_keep_their_channels(rng, height, width, channels):
    image = rng.integers(0, 256, (height, width, channels), np.uint8)
    assert resize_image(image, 128).shape == (*target_size(height, width, 128), channels)


def test_enlarging_is_lanczos_and_shrinking_is_the_area_average(rng):
    image = rng.integers(0, 256, (128, 256, 3), np.uint8)
    enlarged = cv2.resize(image, (512, 256), interpolation=cv2.INTER_LANCZOS4)
    assert np.array_equal(resize_image(image, 256), enlarged)
    quarters = image.reshape(64, 2, 128, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(resize_image(image, 64) - quarters).max() <= 0.5  # rounding to whole levels


def test_a_picture_of_the_right_size_is_not_changed(rng):
    image = rng.integers(0, 256, (128, 192, 3), np.uint8)
    assert np.array_equal(resize_image(image, 128), image)


def test_grey_becomes_three_equal_channels(rng):
    grey = rng.integers(0, 256, (9, 11), np.uint8)
    for picture in (grey, grey[:, :, None]):
        assert np.array_equal(HWC3(picture), np.stack([grey] * 3, axis=2))


def test_rgb_is_returned_as_it_is(rng):
    image = rng.integers(0, 256, (9, 11, 3), np.uint8)
    assert HWC3(image) is image


def test_transparency_shows_white_with_the_published_rounding(rng):
    rgba = rng.integers(0, 256, (64, 64, 4), np.uint8)
    rgba[:2, :, 3] = [[0], [255]]
    color, alpha = rgba[:, :, :3].astype(np.float32), rgba[:, :, 3:].astype(np.float32) / 255.0
    expected = (color * alpha + 255.0 * (1.0 - alpha)).clip(0, 255).astype(np.uint8)
    assert np.array_equal(HWC3(rgba), expected)
    assert (HWC3(rgba)[0] == 255).all()
    assert np.array_equal(HWC3(rgba)[1], rgba[1, :, :3])


@pytest.mark.parametrize("wrong", [np.zeros((8, 8, 3), np.float32), [[1, 2]], np.zeros((8, 8), bool)])
def test_only_uint8_arrays_are_pictures(wrong):
    with pytest.raises(TypeError, match="uint8"):
        HWC3(wrong)


@pytest.mark.parametrize("shape", [(8, 8, 2), (8,), (1, 8, 8, 3), (0, 8, 3)])
def test_other_shapes_are_refused_by_name(shape):
    with pytest.raises(ValueError, match=r"shape"):
        HWC3(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("resolution", [0, -64, 63, 4097])
def test_resolutions_that_no_model_takes_are_refused(resolution):
    with pytest.raises(ValueError, match="64 to 4096"):
        resize_image(np.zeros((64, 64, 3), np.uint8), resolution)


@pytest.mark.parametrize("resolution", [512.0, "512", None])
def test_a_resolution_is_a_whole_number(resolution):
    with pytest.raises(TypeError, match="whole number"):
        target_size(64, 64, resolution)


def test_a_strip_that_would_explode_is_refused():
    with pytest.raises(ValueError, match="20000x8 would be 1280000x512"):
        target_size(8, 20000, 512)


def test_a_picture_without_pixels_has_no_target():
    with pytest.raises(ValueError, match="no pixels"):
        target_size(0, 8, 512)


def layer(ink, share_side=16):
    """A square of plain ink on a transparent layer, uint8 [64 64 4]."""
    drawing = np.zeros((64, 64, 4), np.uint8)
    drawing[:share_side, :share_side] = (*ink, 255)
    return drawing


@pytest.mark.parametrize("ink", [(255, 255, 255), (0, 0, 0), (250, 240, 10)])
def test_ink_on_a_transparent_layer_stands_out_from_the_ground_it_gets(ink):
    flat = flatten_map(layer(ink))
    assert (flat[0, 0] == ink).all()
    assert (flat[40, 40] == (0 if np.median(ink) > 127 else 255)).all()


def test_a_layer_with_nothing_on_it_is_white_as_everywhere():
    assert (flatten_map(np.zeros((8, 8, 4), np.uint8)) == 255).all()


def soft_line(across):
    """A line at 40 that fades from its start to its end."""
    picture = np.zeros((96, 128), np.float32)
    picture[40] = np.linspace(1, 0.5, 128)
    blurred = cv2.GaussianBlur(picture, (0, 0), 2)
    soft = blurred / blurred.max() * 255
    return soft if across else np.ascontiguousarray(soft.T)


@pytest.mark.parametrize("across", [True, False])
def test_the_ridge_of_a_soft_line_is_where_it_was_drawn(across):
    ridge = nms(soft_line(across), 100, 1.0)
    inside = (ridge if across else ridge.T)[
        :, 1:-1
    ]  # where the picture ends, so do the lines to compare with
    assert (np.flatnonzero(inside.any(axis=1)) == 40).all()
    assert inside[40].all()


def test_faint_edges_have_no_ridge():
    assert not nms(soft_line(True) / 4, 100, 1.0).any()


def test_safe_steps_leave_few_levels_and_keep_the_order():
    levels = safe_step(np.linspace(0, 0.999, 1000))
    assert sorted(set(levels.tolist())) == [0, 0.5, 1]
    assert (np.diff(levels) >= 0).all()


def test_a_scribble_is_the_ridge_drawn_with_a_pen_and_ends_where_the_edge_is_faint():
    strokes = scribbled(np.pad(soft_line(True).astype(np.uint8), ((0, 416), (0, 384))))
    assert set(np.unique(strokes)) == {0, 255}
    strong = strokes[:, :16]
    assert (strong[35:46] == 255).all()
    assert not strong[:32].any()
    assert not strong[49:].any()
    assert not strokes[:, 64:].any()


@pytest.mark.parametrize("side", [128, 256])
def test_a_pen_is_about_as_wide_a_part_of_every_small_map(side):
    expected = pen_width(512) * side / 512
    assert pen_width(side) == pytest.approx(expected, abs=2), "a pixel either side"


def test_a_pen_is_as_wide_as_published_from_512_on():
    assert pen_width(1024) == pytest.approx(pen_width(512), abs=2)


def pen_width(side):
    """Pixels across the scribble of a line that fades along its way over a map of `side`."""
    line = np.zeros((side, side), np.float32)
    line[side // 2] = np.linspace(1, 0.8, side)
    soft = cv2.GaussianBlur(line, (0, 0), 4 * min(1, side / 512))
    return (scribbled((soft * (255 / soft.max())).astype(np.uint8)) > 0).mean() * side
