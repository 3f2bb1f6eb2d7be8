import pytest

from eval.report import BARS, missed, quality_table, robustness_table

GOOD = {
    "followed_share": 0.97,
    "coloured_share": 0.9,
    "median_iou": 0.98,
    "median_psnr": 25.0,
    "median_ssim": 0.95,
}


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
