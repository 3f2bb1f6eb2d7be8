from dataclasses import replace

import numpy as np
import pytest

from eval.fidelity import (
    BARS,
    COLOUR_BAR,
    FidelityScores,
    Truth,
    measure,
    missed,
    quality_table,
    robustness_table,
)

CYAN, BROWN = (0, 255, 255), (165, 42, 42)
GOOD = {
    "followed_share": 0.97,
    "coloured_share": 0.9,
    "median_iou": 0.98,
    "median_psnr": 25.0,
    "median_ssim": 0.95,
}


def truth(shift=0):
    mask = np.zeros((64, 64), bool)
    mask[16:48, 12 + shift : 44 + shift] = True
    return Truth(np.where(mask[..., None], np.uint8(CYAN), np.uint8(BROWN)), mask, CYAN, BROWN)


def test_the_truth_itself_scores_full_marks():
    scores = measure([truth().target] * 2, [truth()] * 2)
    assert scores.summary() == {
        "followed_share": 1.0,
        "coloured_share": 1.0,
        "median_iou": 1.0,
        "median_psnr": np.inf,
        "median_ssim": pytest.approx(1, abs=1e-3),
    }


def test_a_shifted_shape_loses_iou_psnr_and_ssim():
    near, far = measure([truth(1).target, truth(6).target], [truth()] * 2), None
    far = FidelityScores(**{name: values[1:] for name, values in vars(near).items()})
    assert list(near.followed) == [True, False]
    assert near.iou[0] == pytest.approx(31 / 33)
    assert far.psnr[0] < near.psnr[0]
    assert far.ssim[0] < near.ssim[0]


def test_swapped_colours_follow_nothing_and_have_no_right_colour():
    swapped = replace(truth(), fill=BROWN, background=CYAN)
    scores = measure([truth().target], [replace(swapped, mask=truth().mask)])
    assert not scores.followed.any()
    assert not scores.coloured.any()


def test_the_colour_bar_lies_exactly_at_its_value_and_one_wrong_region_is_enough_to_fail():
    step = int(COLOUR_BAR)
    t = truth()
    within, beyond, background = (t.target.astype(int) for _ in range(3))
    within[t.mask] += (step, -step, -step)
    beyond[t.mask] += (step + 1, -step - 1, -step - 1)
    background[~t.mask] += step + 1
    scores = measure([p.astype(np.uint8) for p in (within, beyond, background)], [t] * 3)
    assert list(scores.coloured) == [True, False, False]


def test_an_unfilled_picture_follows_nothing():
    empty = np.full((64, 64, 3), BROWN, np.uint8)
    scores = measure([empty], [truth()])
    assert scores.iou[0] == 0
    assert scores.background_error[0] == 0


def test_scores_keep_the_order_of_the_pictures():
    pictures = [truth(shift).target for shift in (0, 3, 6)]
    forward, backward = measure(pictures, [truth()] * 3), measure(pictures[::-1], [truth()] * 3)
    for name, values in vars(forward).items():
        np.testing.assert_array_equal(values, getattr(backward, name)[::-1])


@pytest.mark.parametrize("count", [0, 1])
def test_pictures_and_truths_must_pair_up(count):
    with pytest.raises(ValueError, match="one target for each image"):
        measure([truth().target] * count, [truth()] * (2 * count))


def report(**changes):
    return {
        "count": 200,
        "settings": {"seed": 0, "steps": 20, "scale": None},
        "controlled": {**GOOD, **changes},
        "autoencoder": GOOD,
        "uncontrolled": dict.fromkeys(GOOD, 0.125),
        "hand_drawn_followed_share": 0.9375,
        "seconds_per_picture": 0.5,
    }


def test_a_score_on_its_bar_passes_and_one_below_it_is_named_with_both_numbers():
    assert missed(report()) == []
    for name, bar in BARS.items():
        assert missed(report(**{name: bar})) == []
        assert len(missed(report(**{name: bar - 0.01}))) == 1
    assert missed(report(followed_share=0.5)) == [
        "outline followed (IoU >= 0.90) is 50.0 %, the bar is 95.0 %"
    ]


@pytest.mark.parametrize("name", BARS)
def test_a_score_that_is_no_number_misses_its_bar(name):
    assert len(missed(report(**{name: float("nan")}))) == 1
    assert "MISSED" in quality_table(report(**{name: float("nan")}))


def test_the_table_shows_every_bar_the_hand_drawn_share_and_the_scores_without_control():
    table = quality_table(report(median_psnr=20.0))
    assert table.count("passed") == 3
    assert table.count("MISSED") == 1
    for expected in ("97.0 %", "20.00 dB", "0.950", "93.8 %", "12.5 %", "0.125", "seed 0, steps 20"):
        assert expected in table
    assert "scale" not in table  # none was given


def test_the_robustness_table_has_one_line_for_each_drawing():
    lines = robustness_table({"thin": GOOD, "thick": GOOD}).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["thin", "97.0", "%", "90.0", "%", "0.980"]
