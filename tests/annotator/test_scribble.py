import logging

import cv2
import numpy as np
import pytest

from annotator.scribble import annotate, annotate_xdog, shrink_lines

BLACK, RED = (0, 0, 0), (200, 0, 0)


def drawing(width=3, side=512, line_type=cv2.LINE_AA, colour=BLACK):
    """A circle outline on white with an inner stroke: uint8 [side side 3]."""
    page = np.full((side, side, 3), 255, np.uint8)
    middle = (side // 2 + side // 16, side // 2)
    cv2.circle(page, middle, side * 5 // 16, colour, width, line_type)
    cv2.line(page, (side // 20, side // 10), (side // 5, side * 9 // 10), colour, width, line_type)
    return page


def photographed(page, side=900, ink=0.6, shadow=0.5):
    """`page` as a camera sees it: warm, unevenly lit, a soft shadow, grain and JPEG."""
    rng = np.random.default_rng(0)
    page = 1 - (1 - cv2.resize(page, (side, side), interpolation=cv2.INTER_CUBIC) / 255) * ink
    y, x = np.mgrid[:side, :side] / side
    light = (1 - 0.5 * x - 0.2 * y) * np.where(x + 0.3 * y > 0.7, shadow, 1)
    light = cv2.GaussianBlur(light, (0, 0), side / 60)[:, :, None] * [225, 215, 190]
    seen = cv2.GaussianBlur(page, (0, 0), 1) * light + rng.normal(0, 4, page.shape)
    _, jpeg = cv2.imencode(".jpg", seen.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return cv2.imdecode(jpeg, cv2.IMREAD_COLOR)


def ink(control_map):
    """The map as a mask, after checking that it is binary and grey."""
    assert set(np.unique(control_map)) <= {0, 255}
    assert (control_map == control_map[:, :, :1]).all()
    return control_map[:, :, 0] > 0


def encloses(mask, side=128):
    """Whether the outline keeps a flood from outside away from the circle's middle."""
    flooded = mask.astype(np.uint8)
    cv2.floodFill(flooded, np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.uint8), (0, 0), 2)
    middle = flooded[mask.shape[0] // 2, mask.shape[1] * 9 // 16]
    return middle == 0


@pytest.mark.parametrize("resolution", [64, 128, 512])
@pytest.mark.parametrize("line_type", [cv2.LINE_8, cv2.LINE_AA])
@pytest.mark.parametrize("width", [1, 2, 3, 6, 12, 24])
def test_lines_of_1_to_24_pixels_stay_whole_at_every_resolution(width, line_type, resolution):
    mask = ink(annotate(drawing(width, line_type=line_type), resolution=resolution))
    pieces, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    assert encloses(cv2.dilate(mask.astype(np.uint8), np.ones((2, 2))))  # a diagonal step may leak in fours
    assert pieces == 3, "background, circle and stroke"


@pytest.mark.parametrize("width", [4, 8, 24])
def test_lines_grow_by_less_than_two_pixels(width):
    mask = ink(annotate(drawing(width), resolution=128))
    row = mask[64]  # crosses the circle twice and the stroke once, each nearly at a right angle
    assert row.sum() / 3 <= width / 4 + 2


@pytest.mark.parametrize("width", [1, 3, 24])
@pytest.mark.parametrize("side", [64, 100, 512, 1200])
def test_black_on_white_and_white_on_black_give_the_same_map(width, side):
    page = drawing(width, side)
    assert np.array_equal(annotate(page, resolution=128), annotate(255 - page, resolution=128))


def test_a_stated_polarity_wins_over_the_looks():
    page = drawing()
    looked = annotate(page, resolution=128)
    assert np.array_equal(annotate(page, resolution=128, invert=True), looked)
    assert np.array_equal(annotate(255 - page, resolution=128, invert=False), looked)
    assert ink(annotate(page, resolution=128, invert=False)).mean() > 0.8, "the paper itself counts as ink"


def test_a_filled_shape_stays_filled_in_both_polarities():
    page = cv2.circle(np.full((512, 512, 3), 255, np.uint8), (256, 256), 200, BLACK, cv2.FILLED)
    for picture in (page, 255 - page):
        mask = ink(annotate(picture, resolution=128))
        assert mask[64, 64]
        assert not mask[0].any()


@pytest.mark.parametrize("colour", [RED, (255, 255, 0), (90, 90, 90), (170, 170, 170), (0, 120, 255)])
def test_ink_of_any_colour_counts(colour):
    black, coloured = (ink(annotate(drawing(8, colour=c), resolution=128)) for c in (BLACK, colour))
    assert (black ^ coloured).sum() < 0.03 * black.sum(), "only the soft rim of a line may change"


@pytest.mark.parametrize("resolution", [64, 128, 512])
def test_a_map_is_its_own_map(resolution):
    once = annotate(drawing(2), resolution=resolution)
    assert np.array_equal(annotate(once, resolution=resolution), once)


@pytest.mark.parametrize("size", [(512, 512), (300, 700), (700, 300), (65, 4000), (31, 40), (8, 8)])
def test_any_size_in_a_multiple_of_64_out(size):
    page = np.full((*size, 3), 255, np.uint8)
    cv2.line(page, (0, 0), (size[1], size[0]), BLACK, 1)
    control_map = annotate(page, resolution=64)
    assert control_map.shape[2] == 3
    assert all(side % 64 == 0 for side in control_map.shape[:2])
    assert ink(control_map).any(axis=1).all(), "the diagonal passes through every row"


def test_thin_lines_survive_a_shrinking_by_thirty():
    assert encloses(cv2.dilate(annotate(drawing(1, 4000), resolution=128)[:, :, 0], np.ones((2, 2))) > 0)


@pytest.mark.parametrize("light", [False, True])
def test_transparent_paper_is_paper(light):
    page = drawing(3)
    expected = annotate(page, resolution=128)
    rgba = np.dstack([np.full_like(page, 255 if light else 0), 255 - page[:, :, 0]])
    assert np.array_equal(annotate(rgba, resolution=128), expected)
    assert np.array_equal(annotate(rgba, resolution=128, invert=not light), expected)


def test_a_hole_in_opaque_paper_is_no_ink():
    page = drawing(3)
    rgba = np.dstack([page, np.full(page.shape[:2], 255, np.uint8)])
    rgba[380:480, 300:400, 3] = 0
    rgba[380:480, 300:400, :3] = 0
    hole = ink(annotate(rgba, resolution=128))[96:119, 77:99]
    assert not hole[6:-6, 6:-6].any()


def test_grey_pictures_are_drawings_too():
    page = drawing()
    assert np.array_equal(annotate(page[:, :, 0], resolution=128), annotate(page, resolution=128))


@pytest.mark.parametrize(("strength", "shadow"), [(0.6, 0.9), (0.6, 0.5), (0.3, 0.9), (0.9, 0.3)])
def test_a_photographed_drawing_gives_nearly_the_drawing(strength, shadow):
    page = drawing(10)
    expected = ink(annotate(page, resolution=128)).astype(np.uint8)
    found = ink(annotate(photographed(page, ink=strength, shadow=shadow), resolution=128)).astype(np.uint8)
    near = np.ones((3, 3), np.uint8)
    assert (found & ~cv2.dilate(expected, near) & 1).mean() < 0.002, "ink beside the lines"
    assert (expected & ~cv2.dilate(found, near) & 1).sum() < 0.01 * expected.sum(), "lines lost"


def test_chalk_on_a_photographed_blackboard_is_found():
    page = drawing(10)
    expected, found = (ink(annotate(p, resolution=128)) for p in (page, 255 - photographed(page)))
    assert (expected & found).sum() > 0.8 * (expected | found).sum()


@pytest.mark.parametrize("grey", [255, 0, 128])
def test_a_blank_page_gives_a_black_map_and_says_so(grey, caplog):
    with caplog.at_level(logging.WARNING):
        assert not annotate(np.full((200, 200, 3), grey, np.uint8), resolution=128).any()
    assert "no lines" in caplog.text


@pytest.mark.parametrize("shadow", [1.0, 0.7, 0.5])
def test_a_photographed_blank_page_gives_hardly_any_ink(shadow):
    blank = np.full((64, 64, 3), 255, np.uint8)
    assert ink(annotate(photographed(blank, side=600, shadow=shadow), resolution=128)).mean() < 0.001


def test_shrinking_takes_the_brightest_pixel_of_every_cell():
    lines = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    cells = lines.reshape(4, 3, 5, 4, 3).max(axis=(1, 3))
    assert np.array_equal(shrink_lines(lines, (4, 5)), cells)
    assert shrink_lines(lines, (7, 9)).max() == lines.max()


def test_xdog_is_the_published_difference_of_gaussians():
    rng = np.random.default_rng(0)
    photo = cv2.GaussianBlur(rng.integers(0, 256, (128, 128, 3), np.uint8), (0, 0), 2)
    fine, coarse = (cv2.GaussianBlur(photo.astype(np.float32), (0, 0), s) for s in (0.5, 5.0))
    dog = (255 - np.min(coarse - fine, axis=2)).clip(0, 255).astype(np.uint8)
    expected = 2 * (255 - dog.astype(int)) > 32  # in whole numbers that do not wrap
    assert expected.any()
    assert np.array_equal(ink(annotate_xdog(photo, resolution=128)), expected)


def test_xdog_draws_more_at_a_lower_threshold():
    photo = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8), (0, 0), 2)
    few, many = (ink(annotate_xdog(photo, resolution=64, threshold=t)) for t in (48, 8))
    assert not (few & ~many).any()
    assert few.sum() < many.sum()


@pytest.mark.parametrize("threshold", [0, -5, 256])
def test_xdog_refuses_thresholds_that_mean_nothing(threshold):
    with pytest.raises(ValueError, match="1 to 255, 32 is usual"):
        annotate_xdog(drawing(), resolution=64, threshold=threshold)
