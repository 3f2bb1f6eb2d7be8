"""Prompts in English and Korean, and what is said of words that nobody knows."""

import pytest

from scenes.things.vocabulary import READERS, read_prompt
from scenes.things.words import words


@pytest.mark.parametrize(
    ("korean", "english"),
    [
        ("파란 고양이", "a blue cat"),
        ("고양이", "a cat"),
        ("노란 배경의 파란 고양이", "a blue cat on a yellow background"),
        ("하늘색 배경에 별", "a star on a sky blue background"),
        ("고양이와 빨간 자동차", "a cat and a red car"),
        ("생일 케이크를 그려줘", "a birthday cake"),
    ],
)
def test_korean_becomes_the_english_of_training(korean, english):
    assert read_prompt(korean) == english


def test_every_word_is_read_in_both_languages():
    for word in words().values():
        assert read_prompt(f"A {word.name} on a blue background") == f"a {word.name} on a blue background"
        assert read_prompt(word.korean) == f"a {word.name}"
        for other in word.synonyms:
            assert read_prompt(other) == other


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a unicron", "does not know 'unicron': the nearest it knows are unicorn"),
        ("xyzzyq", "does not know 'xyzzyq': it knows cat, house, tree"),
        ("세탁기", "does not know '세탁기'"),
        ("파란 고양희", "the nearest it knows are 고양이"),
        ("a cat, a dog and a car", "cat, dog, car: this model draws at most 2 things"),
    ],
)
def test_what_is_not_known_is_said_with_the_nearest_words(prompt, said):
    with pytest.raises(ValueError, match=said):
        read_prompt(prompt)


def test_an_empty_prompt_and_further_words_pass():
    assert read_prompt("") == ""
    assert read_prompt("a shiny (cat:1.2)") == "a shiny (cat:1.2)"
    assert READERS[None]("Anything At All") == "Anything At All"
