"""The loading benchmark reads what was written in every form, and its fingerprint tells weights apart."""

import pytest
import torch

from bench.memory.load_memory import FORMS, LIMIT, fingerprint, main, missed
from bench.results import Measurement, by_subject
from tests.small_files import write_small_model


def test_every_form_is_written_loaded_and_found_intact(tmp_path, capsys):
    config = write_small_model(tmp_path)
    main(["--config", str(config), "--folder", str(tmp_path), "--forms", *FORMS])
    lines = capsys.readouterr().out.splitlines()[4:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells] == list(FORMS)
    assert {row[-1] for row in cells} == {"True"}


def test_another_weight_gives_another_fingerprint():
    weights = [torch.randn(5, 7), torch.randn(3)]
    other = [weights[0].clone(), weights[1]]
    other[0][0, 0] += 1e-3
    assert fingerprint(weights) == fingerprint(reversed(weights)) != fingerprint(other)


@pytest.mark.parametrize(
    ("over", "intact", "words"), [(1, 1, None), (1.2, 1, "weights is 1.200"), (1, 0, "other")]
)
def test_what_is_above_the_limit_or_not_intact_is_named(over, intact, words):
    values = {"ratio": over, "intact": intact}
    found = missed(by_subject(Measurement("ckpt", name, value, "") for name, value in values.items()))
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


def test_an_unknown_form_lists_the_known_ones(capsys):
    assert main(["--forms", "onnx"]) == 2
    assert "unknown form 'onnx': use some of safetensors;" in capsys.readouterr().err


@pytest.mark.slow
def test_loading_sd15_stays_below_the_limit(tmp_path, capsys):
    assert main(["--folder", str(tmp_path), "--forms", "safetensors"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert float(row[6]) <= LIMIT
