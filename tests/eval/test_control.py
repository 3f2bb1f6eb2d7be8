import cv2
import numpy as np
import pytest

from eval.control import colour_error, filled_mask, mask_iou

CYAN, BROWN, TEAL, WHITE = (0, 255, 255), (165, 42, 42), (0, 128, 128), (255, 255, 255)


def disc(size=64, radius=18, centre=(32, 30)):
    y, x = np.mgrid[:size, :size]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def paint(mask, fill, background):
    return np.where(mask[..., None], np.uint8(fill), np.uint8(background))


def test_the_filled_region_of_a_clean_picture_is_found_exactly():
    np.testing.assert_array_equal(filled_mask(paint(disc(), CYAN, BROWN), CYAN, BROWN), disc())


def test_the_filled_region_is_found_through_noise_and_wrong_tints():
    rng = np.random.default_rng(0)
    picture = paint(disc(), (60, 200, 220), (190, 90, 60)).astype(float) + rng.normal(size=(64, 64, 3)) * 15
    found = filled_mask(np.clip(picture, 0, 255).astype(np.uint8), CYAN, BROWN)
    assert mask_iou(found, disc()) > 0.99


def test_a_fill_that_resembles_the_named_background_more_is_still_the_fill():
    picture = paint(disc(), (120, 110, 110), BROWN)
    np.testing.assert_array_equal(filled_mask(picture, CYAN, BROWN), disc())


def test_the_blend_of_two_colours_belongs_to_the_nearer_one():
    for share, inside in ((0.4, False), (0.6, True)):
        picture = paint(disc(), CYAN, BROWN)
        picture[0, 0] = np.rint(share * np.array(CYAN) + (1 - share) * np.array(BROWN))
        assert filled_mask(picture, CYAN, BROWN)[0, 0] == inside


@pytest.mark.parametrize("colour", [CYAN, BROWN, (82, 148, 148)])
@pytest.mark.parametrize("noise", [0, 4])
def test_a_plain_picture_has_no_filled_region(colour, noise):
    picture = colour + np.random.default_rng(0).normal(size=(32, 32, 3)) * noise
    assert not filled_mask(np.clip(picture, 0, 255).astype(np.uint8), CYAN, BROWN).any()


def test_a_small_shape_is_found_in_a_noisy_picture():
    small = disc(radius=5)  # two pixels in a hundred
    picture = paint(small, CYAN, BROWN) + np.random.default_rng(0).normal(size=(64, 64, 3)) * 15
    assert mask_iou(filled_mask(np.clip(picture, 0, 255).astype(np.uint8), CYAN, BROWN), small) > 0.95


def test_swapped_colours_give_the_opposite_region():
    np.testing.assert_array_equal(filled_mask(paint(disc(), BROWN, CYAN), CYAN, BROWN), ~disc())


def test_iou_is_one_for_equal_masks_zero_for_apart_ones_and_symmetric():
    half = disc(centre=(32, 48))
    assert mask_iou(disc(), disc()) == 1
    assert mask_iou(disc(radius=8, centre=(10, 10)), disc(radius=8, centre=(50, 50))) == 0
    assert mask_iou(disc(), half) == mask_iou(half, disc())
    assert mask_iou(np.zeros((4, 4), bool), np.zeros((4, 4), bool)) == 1
    assert mask_iou(np.zeros((4, 4), bool), np.eye(4, dtype=bool)) == 0


def test_iou_falls_with_every_pixel_of_shift():
    values = [mask_iou(disc(), np.roll(disc(), shift, axis=1)) for shift in range(8)]
    assert all(first > second for first, second in zip(values, values[1:], strict=False))


def test_masks_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="one size"):
        mask_iou(disc(64), disc(32, 8, (16, 16)))


def test_colour_error_is_the_distance_of_each_channel():
    picture = paint(disc(), CYAN, BROWN)
    np.testing.assert_array_equal(colour_error(picture, disc(), CYAN), 0)
    np.testing.assert_array_equal(colour_error(picture, disc(), TEAL), [0, 127, 127])
    np.testing.assert_array_equal(colour_error(picture, ~disc(), WHITE), [90, 213, 213])


def test_blended_pixels_on_the_edge_do_not_count_as_wrong_colour():
    picture = paint(disc(), CYAN, BROWN)
    inside = cv2.erode(disc().astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    picture[disc() & ~inside] = (82, 148, 148)
    np.testing.assert_array_equal(colour_error(picture, disc(), CYAN), 0)


def test_a_region_that_is_all_edge_is_judged_whole():
    line = np.zeros((8, 8), bool)
    line[4, 2:6] = True
    np.testing.assert_array_equal(colour_error(paint(line, CYAN, BROWN), line, CYAN), 0)


def test_the_border_of_the_picture_is_no_edge():
    everywhere = np.ones((5, 5), bool)
    picture = paint(everywhere, CYAN, BROWN)
    picture[0] = BROWN
    np.testing.assert_allclose(colour_error(picture, everywhere, CYAN), np.abs(np.subtract(CYAN, BROWN)) / 5)


def test_an_empty_region_has_no_colour():
    with pytest.raises(ValueError, match="empty"):
        colour_error(paint(disc(), CYAN, BROWN), np.zeros((64, 64), bool), CYAN)
