"""The quality table: rows are made once, held against full precision, and made again when weights change."""

import json
import math

import pytest

import tools.compress.quantize
from bench.quality import quantized_quality, quantized_rows
from bench.quality.quantized_quality import FULL, missed, table
from tests.small_files import write_small_model

ROW = {
    "bytes": 2**20, "seconds": 0.5, "psnr": 40.0, "psnr_low": 30.0, "ssim": 0.99, "ssim_low": 0.9,
    "followed_share": 0.96, "coloured_share": 0.9, "median_iou": 0.95, "median_psnr": 25.0,
    "median_ssim": 0.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("model"))


def bench(config, run, *flags):
    size = ["--count", "1", "--size", "64"]
    return quantized_quality.main([*flags, *size, "--config", str(config), "--run", str(run)])


def test_rows_are_measured_once_and_anew_when_the_weights_change(config, tmp_path, capsys, monkeypatch):
    made = []
    real = tools.compress.quantize.main
    monkeypatch.setattr(tools.compress.quantize, "main", lambda argv: made.append(argv) or real(argv))
    for _ in range(2):
        assert bench(config, tmp_path, "--rows", "int8_weight") == 0
        lines = capsys.readouterr().out.splitlines()[-3:]
        assert lines[-2].startswith(f"| {FULL} | ")
        assert lines[-1].startswith("| int8_weight | ")
    assert len(made) == 1
    monkeypatch.setattr(quantized_rows, "_content", lambda path: f"other weights of {path}")
    assert bench(config, tmp_path, "--rows", "int8_weight") == 0
    assert len(made) == 2


def test_ctrl_c_while_a_file_is_made_stops_all(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quantized_quality, "full_precision", lambda task: (ROW, []))
    monkeypatch.setattr(tools.compress.quantize, "main", lambda argv: 130)
    assert bench(config, tmp_path, "--rows", "int8_weight") == 130
    assert capsys.readouterr().err == f"stopped; the rows that were finished are in {tmp_path}\n"


def test_a_file_is_a_row_quantized_or_not(config, tmp_path, capsys):
    out = tmp_path / "q.safetensors"
    quantized = [str(config), "--scheme", "int8_weight", "--out", str(out)]
    assert tools.compress.quantize.main(quantized) == 0
    files = [f"small={out}", f"same={config.parent / 'small.safetensors'}"]
    assert bench(config, tmp_path / "run", *files, "--rows") == 0
    assert "| small | " in capsys.readouterr().out
    rows = {
        name: json.loads((tmp_path / f"run/file-{name}.json").read_text())["row"]
        for name in ("small", "same")
    }
    assert rows["same"]["psnr"] == math.inf  # the full precision against itself
    assert 10 < rows["small"]["psnr"] < math.inf
    assert rows["small"]["bytes"] == out.stat().st_size < rows["same"]["bytes"]


def test_the_table_has_a_cell_for_every_head():
    full = {name: value for name, value in ROW.items() if "psnr" not in name[:4] and "ssim" not in name[:4]}
    lines = table({FULL: full, "some": ROW}).splitlines()
    assert {line.count("|") for line in lines} == {len(quantized_quality.HEAD) + 1}
    assert " | - | - | - | - | " in lines[2]
    assert "| some | 1.00 | 0.50 | 40.0 dB | 30.0 dB | 0.9900 |" in lines[3]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"psnr": 34.9}, "34.9 dB, the bar is 35"),
        ({"psnr": math.nan}, "nan dB"),
        ({"followed_share": 0.95}, None),
        ({"followed_share": 0.945}, "followed loses 1.5 points"),
        ({"coloured_share": 0.8}, "colours loses 10.0 points"),
        ({"median_iou": 0.93}, "median IoU loses 2.0 points"),
    ],
)
def test_bars_are_kept_or_named(changes, words):
    found = missed({FULL: ROW, "int8_static": ROW | changes, "int8_weight": ROW | {"psnr": 1.0}})
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rows", "int3"], "unknown row 'int3': use some of int8_weight"),
        (["--count", "0"], "--count 0"),
        (["name"], "'name' is not NAME=FILE"),
        (["name=none.safetensors"], "no file none.safetensors"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, flags, words):
    assert quantized_quality.main([*flags, "--run", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
