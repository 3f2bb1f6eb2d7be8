"""The same pictures by any model: laid out by name, carrying their request, made once."""

import json

import numpy as np
import pytest

from app.provenance import load_request
from eval.generate import main
from eval.materials import materials
from ldm.image import read_image, write_png
from tests.small_files import write_small_model

SIZE = ["--resolution", "64", "--steps", "2"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("model"))


def run(config, out, *flags):
    return main([f"small={config}", "--out", str(out), *SIZE, *flags])


def test_held_out_scenes_become_maps_truths_and_pictures_of_one_name(config, tmp_path, capsys):
    assert run(config, tmp_path, "--count", "2", "--seed", "5") == 0
    for folder in ("maps", "truth", "small"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["0000.png", "0001.png"]
    requests = [load_request(tmp_path / f"small/000{i}.png")[0] for i in range(2)]
    assert [one.seed for one in requests] == [5, 6]
    assert not any(control.preprocess for one in requests for control in one.controls)
    before = (tmp_path / "small/0000.png").stat().st_mtime_ns
    assert run(config, tmp_path, "--count", "2", "--seed", "5") == 0
    assert "0 made, 2 there already" in capsys.readouterr().out
    assert (tmp_path / "small/0000.png").stat().st_mtime_ns == before


def test_another_request_makes_them_anew(config, tmp_path, capsys):
    assert run(config, tmp_path, "--count", "1") == 0
    assert run(config, tmp_path, "--count", "1", "--seed", "1") == 0
    assert capsys.readouterr().out.count("1 made, 0 there already") == 2


def test_pairs_in_fill50ks_form_are_taken_as_maps_and_truths(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    for name, grey in (("source/0.png", 10), ("target/0.png", 20)):
        write_png(data / name, np.full((64, 64, 3), grey, np.uint8))
    line = {"source": "source/0.png", "target": "target/0.png", "prompt": "red circle"}
    (data / "prompt.json").write_text(json.dumps(line) + "\n")
    (one,) = materials(str(data), 9, 0, 64, out)
    assert (one.name, one.prompt, one.is_map) == ("0000", "red circle", True)
    assert read_image(out / "maps/0000.png").max() == 10
    assert read_image(out / "truth/0000.png").max() == 20


def test_pictures_of_a_folder_have_their_prompts_beside_them(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="no prompt for a.png: write one into a.txt"):
        materials(str(tmp_path), 1, 0, 64, tmp_path / "out")
    (tmp_path / "a.txt").write_text("a cup")
    (one,) = materials(str(tmp_path), 1, 0, 64, tmp_path / "out")
    assert (one.prompt, one.is_map) == ("a cup", False)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "no-such-folder"], "no-such-folder: no such folder; or take held-out"),
        (["--count", "0"], "count=0: give 1 or more"),
        (["--num-samples", "2"], "--count says how many inputs"),
        (["--config", "models/tiny.yaml"], "--config: NAME=MODEL says that here"),
        (["--processes", "0"], "processes=0: give 1 or more"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(config, tmp_path, capsys, flags, words):
    assert run(config, tmp_path / "out", *flags) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
