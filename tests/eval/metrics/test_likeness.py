"""PSNR, SSIM and colour error of pairs."""

import numpy as np
import pytest

from eval.metrics.likeness import colour_difference, psnr, ssim


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return list(rng.integers(60, 200, size=(3, 32, 32, 3), dtype=np.uint8))


def test_psnr_is_ten_log_of_the_squared_range_over_the_mean_squared_error(pictures):
    shifted = [pictures[0] + 1, pictures[1] + 10, pictures[2] - 50]
    expected = [20 * np.log10(255 / step) for step in (1, 10, 50)]
    np.testing.assert_allclose(psnr(shifted, pictures), expected, rtol=1e-5)


def test_equal_pictures_are_infinitely_like_and_fully_similar(pictures):
    assert np.isinf(psnr(pictures, pictures)).all()
    np.testing.assert_allclose(ssim(pictures, pictures), 1, rtol=1e-5)


def test_ssim_falls_as_noise_grows(pictures):
    rng = np.random.default_rng(1)
    noise = rng.normal(size=pictures[0].shape)
    noisy = [np.clip(pictures[0] + level * noise, 0, 255).astype(np.uint8) for level in (5, 20, 60)]
    values = ssim(noisy, [pictures[0]] * 3)
    assert values[0] > values[1] > values[2]


def test_ssim_agrees_with_scikit_image(pictures):
    metrics = pytest.importorskip("skimage.metrics")
    other = [np.clip(p.astype(int) + 20 * (i + 1), 0, 255).astype(np.uint8) for i, p in enumerate(pictures)]
    options = {"channel_axis": 2, "data_range": 255, "gaussian_weights": True, "sigma": 1.5}
    options |= {"use_sample_covariance": False}
    expected = [metrics.structural_similarity(a, b, **options) for a, b in zip(pictures, other, strict=True)]
    # The two pad the border differently.
    np.testing.assert_allclose(ssim(pictures, other), expected, atol=0.01)


def test_each_pair_has_its_own_value(pictures):
    together = psnr([pictures[0], pictures[1]], [pictures[1], pictures[2]])
    alone = psnr([pictures[0]], [pictures[1]]), psnr([pictures[1]], [pictures[2]])
    np.testing.assert_allclose(together, np.concatenate(alone))


def test_pictures_that_cannot_be_compared_are_refused(pictures):
    with pytest.raises(ValueError, match="3 images and 2 targets"):
        psnr(pictures, pictures[:2])
    with pytest.raises(ValueError, match="0 images"):
        psnr([], [])
    with pytest.raises(ValueError, match="uint8 of one size"):
        psnr(pictures[:1], [pictures[0][:16]])
    with pytest.raises(ValueError, match="uint8 of one size"):
        psnr(pictures[:1], [pictures[0] / 255.0])
    with pytest.raises(ValueError, match="12 pixels or more"):
        ssim([pictures[0][:8]], [pictures[1][:8]])


def test_colour_error_is_the_mean_of_all_differences(pictures):
    shifted = [pictures[0] + 3, np.where(np.arange(3) == 1, pictures[1] + 30, pictures[1]).astype(np.uint8)]
    np.testing.assert_allclose(colour_difference(shifted, pictures[:2]), [3, 10])


@pytest.mark.parametrize("level", [0, 128, 255])
def test_plain_pictures_are_like_themselves_and_unlike_others(level):
    plain, other = (np.full((16, 16, 3), one, np.uint8) for one in (level, 255 - level))
    assert np.isfinite(ssim([plain], [other])).all()
    np.testing.assert_allclose(ssim([plain], [plain]), 1, atol=1e-3)
    assert colour_difference([plain], [plain])[0] == 0
