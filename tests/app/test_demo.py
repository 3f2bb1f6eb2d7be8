import io
import sys
from pathlib import Path

import numpy as np
import pytest

from app import batch, demo
from app.demo import DRAWINGS, ROWS, SEEDS, main
from cldm.pipeline import Pipeline
from ldm.image import read_image
from tests.small_files import write_small_model


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return str(write_small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def run(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        return main(["--config", config, "--steps", "1", *flags]), *capsys.readouterr()

    return run


def test_the_demo_shows_drawings_and_a_photograph_through_canny():
    assert all((DRAWINGS / file).is_file() for file in ROWS)
    assert {row.controls[0].control for row in ROWS.values()} == {"scribble", "canny"}
    assert {"circle.png", "star.png"} <= set(ROWS)
    assert ROWS["circle.png"].prompt == "cyan circle with brown background"


def test_the_demo_writes_a_grid_and_says_where_and_at_what_cost(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert out.startswith("outputs/demo.png: 4 pictures")
    assert "seconds a picture, peak memory" in out
    height, width, _ = read_image("outputs/demo.png").shape
    assert height > 256 * len(ROWS)
    assert width > 256 * (2 + SEEDS)


def test_the_same_seed_gives_the_same_grid_and_another_seed_another(run):
    grids = [
        run("--out", name, "--seed", seed) and read_image(name)
        for name, seed in (("a.png", "1"), ("b.png", "1"))
    ]
    assert np.array_equal(*grids)
    run("--out", "c.png", "--seed", "2")
    assert not np.array_equal(grids[0], read_image("c.png"))


def test_a_terminal_sees_the_rows_go_by(run, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    run()
    assert "4/4" in terminal.getvalue()


def test_missing_weights_are_said_in_one_friendly_sentence(config, tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yaml").write_text(
        Path(config).read_text().replace("small.safetensors", "tiny.safetensors")
    )
    monkeypatch.setattr(batch, "TINY_CONFIG", tmp_path / "tiny.yaml")
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("the tiny model that ships with this project is not complete")
    assert "tiny.safetensors" in err
    assert "python -m trainer.tiny" in err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--steps", "0"], "steps=0: use 1 to 500"),
        (["--seed", "-1"], "seed=-1"),
        (["--config", "nowhere.yaml"], "no model yaml nowhere.yaml"),
        (["--out", "grid.jpg"], "name it grid.png"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(run, flags, sentence):
    code, out, err = run(*flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sentence in err


def test_a_missing_picture_of_the_demo_is_said(run, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "DRAWINGS", tmp_path)
    code, _, err = run()
    assert (code, err) == (2, f"{tmp_path}/circle.png: no such file\n")


def test_ctrl_c_writes_no_grid(run, monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "__call__", interrupt)
    assert run() == (130, "", "stopped; no grid was written\n")
    assert not (tmp_path / "outputs").exists()
