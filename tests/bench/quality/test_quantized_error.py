"""bench.quality.quantized_error: every scheme is near the float model, int8 nearer than int4, and rows are
kept.
"""

import json
from pathlib import Path

import pytest
import torch

from bench.quality import quantized_error
from bench.quality.quantized_error import FLOAT, SCHEMES, load, outputs, table
from bench.step.files import Files
from tests.small_models import relative_error

TINY = Path(__file__).parents[3] / "models" / "tiny.yaml"
SIZE, STEPS = 64, 2


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(TINY, tmp_path_factory.mktemp("error"))


@pytest.fixture(scope="module")
def errors(files):
    expected = outputs(load(files, FLOAT, SIZE), SIZE, STEPS)
    found = {}
    for scheme in SCHEMES:
        got = outputs(load(files, scheme, SIZE), SIZE, STEPS)
        found[scheme] = relative_error(torch.cat(got["single"]), torch.cat(expected["single"]))
    return found


def test_errors_follow_the_bits(errors):
    assert all(0 < error < 0.5 for error in errors.values())
    assert errors["int8_weight"] < errors["int8_dynamic"] < errors["int4_group"]
    assert errors["int8_weight"] < errors["fp8_weight"] < errors["fp8_dynamic"]


def test_rows_that_are_kept_are_not_measured_again(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.json"
    about = {"size": 64, "steps": 2, "weights": "gaussian", "config": "tiny.yaml"}
    rows = {"int8_weight": {"mib": 1.5, "step": 0.01, "walk": 0.02}}
    path.write_text(json.dumps({"about": about, "rows": rows}))
    monkeypatch.setattr(quantized_error, "apart", lambda *_: pytest.fail("measured again"))
    options = ["--config", str(TINY), "--size", "64", "--steps", "2", "--json", str(path)]
    assert quantized_error.main([*options, "--schemes", "int8_weight"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "| int8_weight | 1.5 | 1.00 | 2.00 |"
    for other in (["--steps", "3"], ["--weights", "default"]):
        assert quantized_error.main([*options, *other, "--schemes", "int8_weight"]) == 2
        assert "name another file" in capsys.readouterr().err


def test_rules_and_pictures_have_rows_and_files_of_their_own(tmp_path, monkeypatch, capsys):
    asked = []

    def apart(args, scheme, path):
        asked.append(scheme)
        torch.save({"single": [torch.ones(2)] * 4, "walk": [torch.ones(2)]}, path)
        made = quantized_error.files_of(args).quantized(scheme, args.size)
        made.touch()

    monkeypatch.setattr(quantized_error, "apart", apart)
    options = ["--config", str(TINY), "--folder", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    options += ["--schemes", "int8_static"]
    for more in ([], ["--rule", "*.proj_in=float"], ["--pictures", "2"]):
        assert quantized_error.main([*options, *more]) == 0
    assert asked == [FLOAT, "int8_static"] * 3
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert list(rows) == ["int8_static", "int8_static, *.proj_in=float", "int8_static, 2 pictures"]
    assert len(list(tmp_path.glob("*-int8_static-*"))) == 3
    assert quantized_error.main([*options, "--rule", "float"]) == 2
    assert "give PATTERN=SCHEME" in capsys.readouterr().err


def test_the_table_is_whole():
    lines = table({"a": {"mib": 1, "step": 0.5, "walk": 1}}, 20).splitlines()
    assert {line.count("|") for line in lines} == {5}
