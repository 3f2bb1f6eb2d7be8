"""Two languages: whatever is said in one is said in the other, with the same values in it."""

import re
import types

import pytest
from gradio.i18n import I18nData

from annotator.registry import DETECTORS
from app.words import (
    KOREAN,
    LABELS,
    LANGUAGES,
    SENTENCES,
    language_of,
    page_head,
    page_words,
    placeholders,
    say,
    shown,
    t,
)

HANGUL = re.compile(r"[가-힣]")
# What is written alike in both languages.
ALIKE = {english for english, korean in KOREAN.items() if english == korean}


def asking(header):
    return types.SimpleNamespace(headers={"accept-language": header} if header else {})


def test_every_label_is_there_in_both_languages():
    words = page_words().translations_dict
    assert set(words) == set(LANGUAGES)
    assert set(words["en"]) == set(words["ko"]) == set(KOREAN)


def test_a_label_of_two_tabs_means_the_same_on_both():
    pairs = [pair for words in LABELS.values() for pair in words.items()]
    assert dict(pairs) == KOREAN
    assert set(pairs) == set(KOREAN.items())


@pytest.mark.parametrize("english", sorted(KOREAN.keys() - ALIKE))
def test_a_label_is_korean_and_says_the_same_values(english):
    assert HANGUL.search(KOREAN[english])
    assert placeholders(english) == placeholders(KOREAN[english]) == []


@pytest.mark.parametrize("english", KOREAN)
def test_a_label_survives_gradios_way_to_the_browser(english):
    """Braces, quotes and tags mean something to the formatter there."""
    for text in (english, KOREAN[english]):
        assert not set(text) & set("{}<>|#")
        assert "'{" not in text


@pytest.mark.parametrize("english", SENTENCES)
def test_a_sentence_names_the_same_values_in_both_languages(english):
    assert placeholders(english) == placeholders(SENTENCES[english])
    assert HANGUL.search(SENTENCES[english])


@pytest.mark.parametrize("english", SENTENCES)
def test_a_sentence_with_values_is_found_and_filled(english):
    values = {name: f"<{name} 1.5>" for name in placeholders(english)}
    said = say(english.format(**values), "ko")
    assert said == SENTENCES[english].format(**values)
    assert say(english.format(**values), "en") == english.format(**values)


def test_a_sentence_nobody_translated_stays_as_it_is():
    assert say("the moon is full", "ko") == "the moon is full"


def test_a_label_without_korean_is_refused_where_it_is_written():
    assert isinstance(t("Undo"), I18nData)
    with pytest.raises(KeyError, match="app/korean.yaml"):
        t("Undoo")


@pytest.mark.parametrize(
    ("header", "language"),
    [("ko-KR,ko;q=0.9", "ko"), ("KO", "ko"), ("en-US,ko;q=0.5", "en"), ("fr", "en"), ("", "en")],
)
def test_the_browser_says_which_language_and_a_flag_overrules_it(header, language):
    assert language_of(asking(header)) == language
    assert [language_of(asking(header), forced) for forced in LANGUAGES] == list(LANGUAGES)


def test_without_a_browser_it_is_english():
    assert language_of(None) == "en"


def test_a_forced_language_is_told_to_the_page():
    assert 'get: () => "ko"' in page_head("ko")
    assert "navigator" not in page_head()


def test_words_from_elsewhere_stay_as_they_are_where_nobody_translated_them():
    assert shown("Undo") == str(t("Undo"))
    assert shown("a detector of somebody's own") == "a detector of somebody's own"


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detectors_sliders_are_named_in_both_languages(name):
    for param, facts in DETECTORS[name].params.items():
        assert {param, facts.help} <= KOREAN.keys()
