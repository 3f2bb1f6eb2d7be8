"""bench.quality.quantized_error: every scheme is near the float model, int8 nearer than int4."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.quality import quantized_error
from bench.quality.quantized_error import FLOAT, SCHEMES, ErrorFlags, main, measure, table
from bench.results import by_subject

TINY = Path(__file__).parents[3] / "models" / "tiny.yaml"


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return ErrorFlags(config=TINY, folder=tmp_path_factory.mktemp("error"), size=64, steps=2)


@pytest.fixture(scope="module")
def rows(flags):
    with pytest.MonkeyPatch.context() as patch:  # processes of their own would only import everything again
        patch.setattr(quantized_error, "apart", lambda function, *arguments: function(*arguments))
        return by_subject(measure(flags))


def test_errors_follow_the_bits(rows):
    errors = {scheme: row["a step"].value for scheme, row in rows.items()}
    assert list(errors) == list(SCHEMES)
    assert all(0 < error < 0.5 for error in errors.values())
    assert errors["int8_weight"] < errors["int8_dynamic"] < errors["int4_group"]
    assert errors["int8_weight"] < errors["fp8_weight"] < errors["fp8_dynamic"]


def test_the_table_has_a_row_a_scheme(flags, rows):
    row = rows["int8_weight"]
    errors = [f"{100 * row[what].value:.2f}" for what in ("a step", "sampling")]
    expected = f"| int8_weight | {row['file'].value / 2**20:.1f} | {' | '.join(errors)} |"
    assert table(rows, flags).splitlines()[2] == expected


def test_rules_have_rows_and_files_of_their_own(flags, tmp_path, monkeypatch):
    asked = []

    def apart(function, flags, scheme, path):
        asked.append(scheme)
        torch.save({"a step": [torch.ones(2)] * 4, "sampling": [torch.ones(2)]}, path)
        flags.files.quantized(scheme, flags.size).touch()

    monkeypatch.setattr(quantized_error, "apart", apart)
    one = replace(flags, folder=tmp_path, only=("int8_static",))
    others = [one, replace(one, rule=("*.proj_in=float",))]
    labels = [list(by_subject(measure(other))) for other in others]
    assert labels == [["int8_static"], ["int8_static, *.proj_in=float"]]
    assert asked == [FLOAT, "int8_static"] * 2
    assert len(list(tmp_path.glob("*-int8_static-*"))) == 2


def test_a_rule_without_a_scheme_is_refused(capsys):
    assert main(["--rule", "float"]) == 2
    assert "give PATTERN=SCHEME" in capsys.readouterr().err
