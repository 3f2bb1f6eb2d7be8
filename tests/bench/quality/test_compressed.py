"""The quality table: rows are made once, held against full precision, and made again when weights change."""

import math
import shutil
from pathlib import Path

import pytest

import tools.compress.quantize
from bench.quality import compressed, held_out
from bench.quality.compressed import COLUMNS, FULL, CompressedFlags, missed, table
from bench.results import Measurement, by_subject, read_rows
from tests.small_files import write_small_model

PRUNED = ("2:4", "mlp 25 %")
MODELS = Path(__file__).parents[3] / "models"
ROW = {
    "bytes": 2**20, "seconds": 0.5, "PSNR to full": 40.0, "PSNR to full, low": 30.0, "SSIM to full": 0.99,
    "SSIM to full, low": 0.9, "followed": 0.96, "colours": 0.9, "median IoU": 0.95, "PSNR to truth": 25.0,
    "SSIM to truth": 0.9,
}  # fmt: skip


def rows_of(**rows):
    return by_subject(
        Measurement(name, quantity, value, "")
        for name, row in rows.items()
        for quantity, value in row.items()
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("model"))


def bench(config, run, *flags):
    size = ["--count", "1", "--size", "64"]
    return compressed.main([*flags, *size, "--config", str(config), "--run", str(run)])


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
    monkeypatch.setattr(held_out, "content", lambda path: f"other weights of {path}")
    assert bench(config, tmp_path, "--rows", "int8_weight") == 0
    assert len(made) == 2


def test_ctrl_c_while_a_file_is_made_stops_all(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tools.compress.quantize, "main", lambda argv: 130)
    assert bench(config, tmp_path, "--rows", "int8_weight") == 130
    assert "stopped; what is finished stays" in capsys.readouterr().err


def test_a_file_is_a_row_quantized_or_not(config, tmp_path, capsys):
    out = tmp_path / "q.safetensors"
    quantized = [str(config), "--scheme", "int8_weight", "--out", str(out)]
    assert tools.compress.quantize.main(quantized) == 0
    files = [f"small={out}", f"same={config.parent / 'small.safetensors'}"]
    path = tmp_path / "rows.json"
    assert bench(config, tmp_path / "run", *files, "--results", str(path), "--rows") == 0
    assert "| small | " in capsys.readouterr().out
    rows = {
        name: {quantity: one.value for quantity, one in row.items()} for name, row in read_rows(path).items()
    }
    assert rows["same"]["PSNR to full"] == math.inf  # the full precision against itself
    assert 10 < rows["small"]["PSNR to full"] < math.inf
    assert rows["small"]["bytes"] == out.stat().st_size < rows["same"]["bytes"]


def test_the_table_has_a_cell_for_every_head():
    full = {name: value for name, value in ROW.items() if "to full" not in name}
    flags = CompressedFlags()
    lines = table(rows_of(**{FULL: full, "some": ROW}), flags).splitlines()
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 2}
    assert " | - | - | - | - | " in lines[2]
    assert "| some | 1.00 | 0.50 | 40.0 dB | 30.0 dB | 0.9900 |" in lines[3]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"PSNR to full": 34.9}, "34.9 dB, the bar is 35"),
        ({"PSNR to full": math.nan}, "nan dB"),
        ({"followed": 0.95}, None),
        ({"followed": 0.945}, "followed loses 1.5 points"),
        ({"colours": 0.8}, "colours loses 10.0 points"),
        ({"median IoU": 0.93}, "median IoU loses 2.0 points"),
    ],
)
def test_bars_are_kept_or_named(changes, words):
    others = {"int8_static": ROW | changes, "int8_weight": ROW | {"PSNR to full": 1.0}}
    found = missed(rows_of(**{FULL: ROW}, **others))
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rows", "int3"], "unknown row 'int3': use some of int8_weight"),
        (["--count", "0"], "count=0"),
        (["name"], "'name' is not NAME=FILE"),
        (["name=none.safetensors"], "no file none.safetensors"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, flags, words):
    assert compressed.main([*flags, "--run", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.fixture
def made(monkeypatch):
    """What would have been made, each an empty file."""
    commands = []

    def make(path, argv):
        if not path.is_file():
            commands.append((path, argv[0]))
            path.touch()

    monkeypatch.setattr(compressed, "make", make)
    return commands


def pruned_rows(config, run, **options):
    flags = CompressedFlags(config=config, run=run, **options)
    return dict(pair for name in PRUNED for pair in compressed.made_files(flags, name))


def test_each_pruned_row_is_made_and_trained_on_once(tmp_path, made):
    found = pruned_rows(MODELS / "tiny.yaml", tmp_path, finetune_steps=7)
    assert list(found) == ["2:4", "2:4, 7 steps", "mlp 25 %", "mlp 25 %, 7 steps"]
    assert [command for _, command in made] == ["2:4", "finetune", "structured", "finetune"]
    assert [path for path, _ in made] == list(found.values())
    assert pruned_rows(MODELS / "tiny.yaml", tmp_path, finetune_steps=7) == found
    assert len(made) == 4
    assert list(pruned_rows(MODELS / "tiny.yaml", tmp_path, finetune_steps=0)) == ["2:4", "mlp 25 %"]


def test_files_of_other_weights_are_not_taken_for_these(tmp_path, made):
    for path in MODELS.glob("tiny*"):
        if path.suffix != ".py":
            shutil.copy(path, tmp_path)
    before = pruned_rows(tmp_path / "tiny.yaml", tmp_path / "run")
    with (tmp_path / "tiny.safetensors").open("ab") as file:
        file.write(b" ")
    after = pruned_rows(tmp_path / "tiny.yaml", tmp_path / "run")
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


def test_a_pruned_file_is_made_once_and_scored(tmp_path, capsys):
    flags = ["--run", str(tmp_path), "--rows", "2:4", "--finetune-steps", "0", "--count", "1", "--size", "64"]
    assert compressed.main(flags) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| 2:4 | ")
    (made,) = tmp_path.glob("*/2-4.safetensors")  # a folder for each set of weights
    time = made.stat().st_mtime_ns
    assert compressed.main(flags) == 0
    assert made.stat().st_mtime_ns == time
