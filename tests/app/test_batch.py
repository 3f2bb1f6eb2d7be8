import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import generate
from app.batch import folder_jobs, images_in, prompt_beside
from cldm.pipeline import Pipeline
from cldm.request import Request
from common.memory import memory_sentence, peak_memory
from ldm.image import read_image, read_png_text, write_png
from tests.small_files import write_small_model


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return str(write_small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`in` with two drawings: a.png, whose prompt is in a.txt, and b.png without one."""
    monkeypatch.chdir(tmp_path)
    drawing = np.full((80, 96, 3), 255, np.uint8)
    drawing[20:60, 30:34] = 0
    for name in ("a", "b"):
        write_png(tmp_path / "in" / f"{name}.png", drawing)
        drawing = np.roll(drawing, 20, axis=1)
    (tmp_path / "in" / "a.txt").write_text("\ufeffcyan circle\n with brown background\n", encoding="utf-8")
    return tmp_path / "in"


@pytest.fixture
def run(config, folder, capsys):
    def run(*flags, prompt="red star"):
        command = ["--config", config, "--batch-dir", "in", "--steps", "2", *map(str, flags)]
        code = generate.main([*command, *(["--prompt", prompt] if prompt is not None else [])])
        return code, *capsys.readouterr()

    return run


def stored(name):
    return json.loads(read_png_text(f"outputs/{name}")["request"])


def pictures():
    return sorted(path.name for path in Path("outputs").iterdir())


def contents(folder="outputs"):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# A folder, from the command line


def test_each_picture_has_the_prompt_beside_it_or_that_for_all(run):
    code, out, err = run()
    assert code == 0, err
    assert out == "outputs/a_seed0.png\noutputs/b_seed0.png\n"
    assert stored("a_seed0.png")["prompt"] == "cyan circle with brown background"
    assert stored("b_seed0.png")["prompt"] == "red star"


def test_what_is_finished_is_not_made_again_and_needs_no_model(run, monkeypatch):
    run("--num-samples", 2)
    before = contents()
    monkeypatch.setattr(Pipeline, "from_files", None)
    code, out, err = run("--num-samples", 2, "--json")
    assert code == 0, err
    assert [one["made"] for one in json.loads(out)["pictures"]] == [False] * 4
    assert contents() == before


def test_a_folder_goes_on_where_it_was_stopped(run, monkeypatch):
    run()
    whole = contents()
    Path("outputs/b_seed0.png").unlink()
    calls, call = [], Pipeline.__call__
    monkeypatch.setattr(Pipeline, "__call__", lambda *args, **named: calls.append(1) or call(*args, **named))
    code, _, err = run()
    assert (code, len(calls)) == (0, 1)
    assert "1 made, 1 there already" in err
    assert contents() == whole


def test_a_changed_prompt_or_picture_makes_a_new_one_beside_the_old(run, folder):
    run()
    (folder / "a.txt").write_text("gold heart")
    write_png(folder / "b.png", 255 - read_image(folder / "b.png"))
    run()
    assert pictures() == ["a_seed0.png", "a_seed0_2.png", "b_seed0.png", "b_seed0_2.png"]
    assert stored("a_seed0_2.png")["prompt"] == "gold heart"
    assert "2 there already" in run()[2]


def test_a_half_finished_or_foreign_file_is_left_alone(run):
    Path("outputs").mkdir()
    Path("outputs/a_seed0.png").write_bytes(b"\x89PNG half of a picture")
    write_png("outputs/b_seed0.png", np.zeros((8, 8, 3), np.uint8))
    before = contents()
    run()
    assert pictures() == ["a_seed0.png", "a_seed0_2.png", "b_seed0.png", "b_seed0_2.png"]
    assert before.items() <= contents().items()


def test_a_bad_picture_does_not_stop_the_others(run, folder):
    (folder / "a.png").write_bytes(b"this is no picture")
    code, out, err = run("--json")
    assert code == 2
    assert err == "in/a.png is no picture that can be read: give a PNG, JPEG or WebP file\n"
    result = json.loads(out)
    assert list(result["failed"]) == ["in/a.png"]
    assert pictures() == ["b_seed0.png"]


def test_a_model_that_cannot_be_loaded_stops_everything_at_once(run):
    code, out, err = run("--weights", "nowhere.safetensors")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "nowhere.safetensors" in err


def test_pictures_of_one_name_do_not_mix(run, folder):
    Image.open(folder / "a.png").save(folder / "a.jpg")
    assert run()[0] == 0
    assert pictures() == ["a.jpg_seed0.png", "a.png_seed0.png", "b_seed0.png"]


def test_every_control_sees_the_picture(run):
    code, _, err = run("--control", "canny", "--control", "scribble")
    assert code == 0, err
    assert [one["control"] for one in stored("b_seed0.png")["controls"]] == ["canny", "scribble"]


def test_a_folder_is_made_as_an_image_was(run):
    run("--seed", 5, "--negative-prompt", "blue")
    code, _, err = run("--from", "outputs/b_seed5.png", "--out", "again", prompt=None)
    assert code == 0, err
    assert contents("again") == contents()


def test_guess_mode_needs_no_prompts(run, folder):
    (folder / "a.txt").unlink()
    code, _, err = run("--guess-mode", prompt=None)
    assert code == 0, err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "no prompt for b.png: write one into b.txt beside it, or give --prompt for all"),
        (["--out", "in"], "is the folder of the input pictures"),
        (["--batch-dir", "nowhere"], "nowhere: no such folder"),
        (["--batch-dir", "in/a.png"], "for one picture use --image"),
        (["--batch-dir", "empty"], "empty has no pictures: looked for .png"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(run, flags, sentence):
    Path("empty").mkdir()
    code, out, err = run(*flags, prompt=None)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert sentence in err
    assert not Path("outputs").exists()


# The parts


def test_only_pictures_count_and_they_come_by_name(folder):
    for name in (".hidden.png", "notes.md", "0.JPEG"):
        (folder / name).write_bytes(b"")
    (folder / "deeper.png").mkdir()
    assert [path.name for path in images_in(folder)] == ["0.JPEG", "a.png", "b.png"]


@pytest.mark.parametrize(
    ("content", "sentence"), [(b" \n", "a.txt is empty"), (b"\xff\xfe\x00", "not UTF-8")]
)
def test_an_unusable_prompt_file_is_an_error_and_not_skipped(folder, content, sentence):
    (folder / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        prompt_beside(folder / "a.png")


def test_all_pictures_without_prompt_are_counted(folder):
    (folder / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"no prompt for a\.png and 1 more"):
        folder_jobs(folder, Request, None)


def test_memory_is_told_in_words():
    assert memory_sentence({"ram": 3 * 2**20, "gpu": None}) == "peak memory 3 MiB RAM"
    assert memory_sentence({"ram": 2**20, "gpu": 2**21}) == "peak memory 1 MiB RAM and 2 MiB GPU"
    assert memory_sentence({"ram": None, "gpu": None}) == "peak memory unknown"
    ballast = np.ones(2**26, np.uint8)
    assert peak_memory()["ram"] > ballast.nbytes
