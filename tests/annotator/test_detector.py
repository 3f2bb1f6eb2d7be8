import json

import numpy as np
import pytest

from annotator.detector import CHOICE, REAL, SWITCH, TEXT, WHOLE, Detector, Param, word_of

REALS = Param(1.0, 0, 8, 0.5)
WHOLES = Param(3, 1, 255, 1)
SWITCHES = Param(False)
CHOICES = Param(None, choices=(None, True, False))
NAMED = Param("soft", choices=("soft", "hard"))
TEXTS = Param("", help="some JSON")


def test_the_kind_follows_from_the_default():
    kinds = [one.kind for one in (REALS, WHOLES, SWITCHES, CHOICES, NAMED, TEXTS)]
    assert kinds == [REAL, WHOLE, SWITCH, CHOICE, CHOICE, TEXT]


@pytest.mark.parametrize(
    ("param", "given", "taken"),
    [
        (REALS, 4, 4.0),
        (REALS, np.float32(0.5), 0.5),
        (WHOLES, 7.0, 7),
        (WHOLES, np.int64(255), 255),
        (SWITCHES, True, True),
        (CHOICES, None, None),
        (CHOICES, False, False),
        (NAMED, "hard", "hard"),
        (TEXTS, "any", "any"),
    ],
)
def test_values_in_range_come_back_as_what_json_can_hold(param, given, taken):
    value = param.checked("x", given)
    assert value == taken
    assert type(value) is type(taken)
    assert param.checked("x", json.loads(json.dumps(value))) == value


@pytest.mark.parametrize(
    ("param", "value", "allowed"),
    [
        (REALS, 8.1, "0 to 8, 1 is usual"),
        (REALS, float("nan"), "0 to 8"),
        (REALS, float("inf"), "0 to 8"),
        (REALS, True, "0 to 8"),
        (REALS, "3", "0 to 8"),
        (REALS, None, "0 to 8"),
        (REALS, [3], "0 to 8"),
        (WHOLES, 7.5, "a whole number from 1 to 255, 3 is usual"),
        (WHOLES, 10**400, "a whole number from 1 to 255"),
        (SWITCHES, 1, "yes or no, no is usual"),
        (SWITCHES, None, "yes or no"),
        (CHOICES, "auto", "auto, yes or no, auto is usual"),
        (CHOICES, 0, "auto, yes or no"),
        (NAMED, "harder", "soft or hard"),
        (TEXTS, 3, "a text"),
        (TEXTS, "x" * 2_000_000, "a text"),
    ],
)
def test_other_values_are_refused_in_one_short_sentence(param, value, allowed):
    with pytest.raises(ValueError, match=f"x=.*: it takes .*{allowed}") as error:
        param.checked("x", value)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("param", "word", "value"),
    [
        (REALS, "0.5", 0.5),
        (REALS, "1e0", 1.0),
        (WHOLES, "12", 12),
        (SWITCHES, "yes", True),
        (CHOICES, "auto", None),
        (CHOICES, "no", False),
        (NAMED, "hard", "hard"),
        (TEXTS, "1", "1"),
    ],
)
def test_words_of_a_command_line_mean_values(param, word, value):
    assert param.parsed("x", word) == value
    assert type(param.parsed("x", word)) is type(value)


@pytest.mark.parametrize(
    ("param", "word"), [(REALS, "many"), (REALS, "nan"), (WHOLES, "1.5"), (SWITCHES, "on")]
)
def test_words_that_mean_nothing_are_refused(param, word):
    with pytest.raises(ValueError, match=f"x='?{word}'?: it takes"):
        param.parsed("x", word)


@pytest.mark.parametrize("param", [REALS, WHOLES, SWITCHES, CHOICES, NAMED, TEXTS])
def test_the_default_is_allowed_and_its_word_means_it(param):
    assert param.checked("x", param.default) == param.default
    assert param.parsed("x", word_of(param.default)) == param.default


def test_a_detector_checks_names_and_ranges():
    detector = Detector("lines", params={"size": REALS})
    assert detector.checked("d", {"size": 2}) == {"size": 2.0}
    with pytest.raises(ValueError, match="d has no parameter low: it takes size"):
        detector.checked("d", {"low": 1})
    with pytest.raises(ValueError, match="size=9: it takes 0 to 8"):
        detector.checked("d", {"size": 9})
