"""What pruned files say of themselves."""

import json

import pytest
import torch
from safetensors.torch import save_file

from quantize.prune.record import METADATA_KEY, Record, read_record

RECORD = Record(
    "tiny.yaml",
    ({"how": "structured", "mlp": 0.5},),
    {"model.ff": 16},
    {"model.attn.to_q": "2:4"},
    {"tiny.safetensors": "ab" * 32},
)


def write(path, text):
    save_file({"x": torch.ones(2)}, path, metadata={METADATA_KEY: text})
    return path


def test_a_record_comes_back_as_it_was(tmp_path):
    assert read_record(write(tmp_path / "a.safetensors", RECORD.to_json())) == RECORD


def test_steps_follow_each_other():
    later = RECORD.then({"how": "2:4"}, masked={"a": "2:4"})
    assert [step["how"] for step in later.steps] == ["structured", "2:4"]
    assert (later.masked, later.counts) == ({"a": "2:4"}, RECORD.counts)


def test_other_files_say_nothing(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "plain.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    torch.save({}, tmp_path / "a.ckpt")
    names = ("plain.safetensors", "broken.safetensors", "a.ckpt", "missing.safetensors", ".")
    assert [read_record(tmp_path / name) for name in names] == [None] * len(names)


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
def test_a_newer_format_and_nonsense_are_one_sentence(tmp_path, text, words):
    with pytest.raises(ValueError, match=words) as raised:
        read_record(write(tmp_path / "a.safetensors", text))
    assert "\n" not in str(raised.value)
