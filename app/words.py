"""The page's words in two languages. The English text itself is the key; `app/korean.yaml` holds the Korean.

Labels travel to the browser as keys and are shown in its language, which Gradio's settings can change.
Sentences that the server says are translated here, by patterns: `steps={steps}: use 1 to {most}` fits any two
values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import gradio as gr
import yaml
from gradio.i18n import I18n, I18nData

Language = Literal["en", "ko"]
LANGUAGES: tuple[Language, ...] = ("en", "ko")
STATIC = Path(__file__).with_name("static")
_TABLES = yaml.safe_load(Path(__file__).with_name("korean.yaml").read_text("utf-8"))
LABELS: dict[str, dict[str, str]] = _TABLES["labels"]  # by the tab they stand on
KOREAN: dict[str, str] = {english: korean for words in LABELS.values() for english, korean in words.items()}
SENTENCES: dict[str, str] = _TABLES["sentences"]
PLACEHOLDER = re.compile(r"\{(\w+)\}")


def t(english: str) -> I18nData:
    """A label in the browser's language; KeyError for text that `KOREAN` does not know."""
    if english not in KOREAN:
        raise KeyError(f"{english!r} has no Korean: add it to app/korean.yaml")
    return I18nData(english)


def shown(english: str) -> str:
    """As `t`, for text that comes from elsewhere: it stays as it is where `KOREAN` does not know it.

    A text, since Gradio translates labels in updates only where they are texts.
    """
    return str(t(english)) if english in KOREAN else english


def page_words() -> I18n:
    """All labels in both languages, for `launch(i18n=...)`."""
    return I18n(en={english: english for english in KOREAN}, ko=dict(KOREAN))


def page_head(lang: Language | None = None) -> str:
    """What stands in the page's head: its own script, and `lang` in place of the browser's language.

    Gradio asks `navigator.language` once, before it draws anything.
    """
    getter = f'Object.defineProperty(navigator, "language", {{ get: () => "{lang}" }});\n' if lang else ""
    return f"<script>\n{getter}{(STATIC / 'page.js').read_text('utf-8')}</script>"


def language_of(request: gr.Request | None, forced: Language | None = None) -> Language:
    """The language to answer in: the forced one, else what the browser prefers, else English."""
    if forced:
        return forced
    accepted = request.headers.get("accept-language", "") if request else ""
    return "ko" if accepted.strip().lower().startswith("ko") else "en"


def say(sentence: str, lang: Language) -> str:
    """A sentence in `lang`: the English one itself where no pattern of `SENTENCES` fits."""
    if lang == "en":
        return sentence
    if sentence in KOREAN:
        return KOREAN[sentence]
    for pattern, korean in _patterns():
        if match := pattern.fullmatch(sentence):
            return _filled(korean, match.groupdict())
    return sentence


def placeholders(text: str) -> list[str]:
    """The names in braces, sorted."""
    return sorted(PLACEHOLDER.findall(text))


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    return [(_pattern(english), korean) for english, korean in SENTENCES.items()]


def _pattern(english: str) -> re.Pattern[str]:
    parts = PLACEHOLDER.split(english)  # text, name, text, name, ... text
    pieces = [re.escape(part) if k % 2 == 0 else f"(?P<{part}>.+?)" for k, part in enumerate(parts)]
    return re.compile("".join(pieces), re.DOTALL)


def _filled(korean: str, values: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda found: values[found[1]], korean)
