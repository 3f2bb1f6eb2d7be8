from itertools import product

import pytest
from PIL import ImageColor

from scenes.colours import COLOURS, MIN_CONTRAST, TOLERANCE, contrast, differ_clearly


def test_every_colour_keeps_the_value_that_css_gives_its_name():
    for name, rgb in COLOURS.items():
        assert rgb == ImageColor.getrgb(name.replace(" ", ""))


def test_no_two_names_mean_the_same_colour_and_no_css_colour_is_lost():
    assert len(set(COLOURS.values())) == len(COLOURS)
    assert set(COLOURS.values()) == {ImageColor.getrgb(name) for name in ImageColor.colormap}


@pytest.mark.parametrize(
    ("css", "words"),
    [
        ("palegoldenrod", "pale golden rod"),
        ("lightgoldenrodyellow", "light golden rod yellow"),
        ("darkslategray", "dark slate gray"),
        ("cornflowerblue", "cornflower blue"),
        ("mediumaquamarine", "medium aquamarine"),
        ("orangered", "orange red"),
        ("cornsilk", "cornsilk"),
        ("orchid", "orchid"),
    ],
)
def test_a_css_name_is_split_into_the_words_a_prompt_uses(css, words):
    assert COLOURS[words] == ImageColor.getrgb(css)


@pytest.mark.parametrize("kept", ["cyan", "magenta", "gray"])
def test_of_two_spellings_the_common_one_stays(kept):
    assert kept in COLOURS


def test_a_painted_colour_within_tolerance_of_the_fill_is_never_within_tolerance_of_the_background():
    assert MIN_CONTRAST > 2 * TOLERANCE
    for first, second in product(list(COLOURS)[::7], list(COLOURS)[::5]):
        assert differ_clearly(first, second) == differ_clearly(second, first)
        assert differ_clearly(first, second) == (contrast(COLOURS[first], COLOURS[second]) >= MIN_CONTRAST)
    assert not differ_clearly("white", "ivory")
    assert differ_clearly("cyan", "brown")
