"""What pruned files say of themselves."""

import json

import pytest

from quantize.prune.record import Record

RECORD = Record(
    "tiny.yaml",
    ({"how": "structured", "mlp": 0.5},),
    {"model.ff": 16},
    {"model.attn.to_q": "2:4"},
    {"tiny.safetensors": "ab" * 32},
)


def test_a_record_comes_back_as_it_was():
    assert Record.from_json(RECORD.to_json(), "a.safetensors") == RECORD


def test_steps_follow_each_other():
    later = RECORD.then({"how": "2:4"}, masked={"a": "2:4"})
    assert [step["how"] for step in later.steps] == ["structured", "2:4"]
    assert (later.masked, later.counts) == ({"a": "2:4"}, RECORD.counts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            json.dumps({**json.loads(RECORD.to_json()), "version": 9}),
            "format 9, this program reads 1: update",
        ),
        ("no json", "says nonsense about its pruning, make it again"),
        ("[]", "says nonsense"),
        ('{"version": 1}', "says nonsense"),
    ],
)
def test_a_newer_format_and_nonsense_are_one_sentence(text, words):
    with pytest.raises(ValueError, match=words) as raised:
        Record.from_json(text, "a.safetensors")
    assert "\n" not in str(raised.value)
