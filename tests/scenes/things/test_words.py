"""The table of words, and the rules by which art and colours are held out."""

from collections import Counter

from scenes.things.palette import KOREAN, PALETTE
from scenes.things.words import HELD_OUT_WORDS, held_out_styles, is_held_out, styles, words


def test_there_are_more_than_two_hundred_words_each_with_icons_and_a_korean_name():
    assert len(words()) > 200
    assert all(word.icons and word.korean for word in words().values())


def test_every_name_belongs_to_one_word():
    for names in (
        [name for word in words().values() for name in (word.name, *word.synonyms)],
        [word.korean for word in words().values()],
        [icon for word in words().values() for icon in word.icons],
    ):
        assert [name for name, count in Counter(names).items() if count > 1] == []


def test_each_held_out_word_keeps_two_styles_for_training():
    kept = held_out_styles()
    assert len(kept) == HELD_OUT_WORDS
    assert set(kept.values()) == set(styles("scenes"))
    assert set(kept) <= set(words())


def test_about_one_combination_in_twenty_is_held_out():
    kept = [is_held_out(word, colour) for word in words() for colour in PALETTE]
    assert 0.04 < sum(kept) / len(kept) < 0.06


def test_every_colour_has_a_korean_name_of_its_own():
    assert list(KOREAN.values()) == list(PALETTE)
