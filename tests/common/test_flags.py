"""A dataclass and its command line say the same."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

import pytest

from common.flags import add_flags, flag, read_flags
from common.shell import Parser


@dataclass(frozen=True)
class Steps:
    source: Path = flag(MISSING, "what to read", "source")
    out: Path | None = flag(None, "where to write")
    batch_size: int = flag(4, "pairs a step", "--train-batch-size", "--batch-size")
    rate: float = flag(1e-5, "of learning (default: small)")
    words: tuple[str, ...] = flag((), "some words")
    size: tuple[int, ...] = flag((8, 8), "height and width", nargs=2)
    kind: Literal["full", "lite"] = flag("full", "of branch")
    resume: bool = flag(False, "go on")
    cache: bool = flag(True, "keep latents")
    inner: int = 7  # no flag


@pytest.fixture
def parser():
    parser = Parser("steps.py")
    add_flags(parser, Steps, "how long", "in steps")
    return parser


def read(parser, *words):
    return read_flags(Steps, parser.parse_args(["file.ckpt", *words]))


def test_without_flags_the_defaults_come_out(parser):
    assert read(parser) == Steps(Path("file.ckpt"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--out a/b.png", {"out": Path("a/b.png")}),
        ("--train-batch-size 2", {"batch_size": 2}),
        ("--batch-size 2", {"batch_size": 2}),
        ("--rate 1e-3", {"rate": 1e-3}),
        ("--words one two", {"words": ("one", "two")}),
        ("--size 2 3", {"size": (2, 3)}),
        ("--kind lite", {"kind": "lite"}),
        ("--resume", {"resume": True}),
        ("--no-cache", {"cache": False}),
    ],
)
def test_each_kind_of_field_is_read_in_its_type(parser, words, expected):
    assert read(parser, *words.split()) == Steps(Path("file.ckpt"), **expected)


@pytest.mark.parametrize("words", ["--batch-size two", "--kind huge", "--size 1", "--inner 3", "--no-resume"])
def test_what_no_field_allows_is_refused_in_one_sentence(parser, words, capsys):
    with pytest.raises(SystemExit) as raised:
        read(parser, *words.split())
    assert raised.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_field_without_default_must_be_given(parser):
    with pytest.raises(SystemExit):
        parser.parse_args([])


def test_help_says_each_default_once(parser):
    text = " ".join(parser.format_help().split())
    assert "pairs a step (default: 4)" in text
    assert "of learning (default: small)" in text
    assert "where to write" in text
    assert "(default: None)" not in text
    assert "in steps" in text


def test_fields_that_are_no_flags_are_given_in_code(parser):
    args = parser.parse_args(["file.ckpt"])
    assert read_flags(Steps, args, inner=3) == Steps(Path("file.ckpt"), inner=3)
