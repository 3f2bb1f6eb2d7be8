import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from scenes.fill50k import Recipe, main, make_dataset
from scenes.shape_scenes import is_held_out, render
from scenes.shapes import SHAPES

SMALL = Recipe(size=32, seed=5, hand_drawn=0.3, widths=(1.0, 24.0))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entries(folder):
    return [json.loads(line) for line in (folder / "prompt.json").read_text().splitlines()]


def test_each_line_of_prompt_json_names_pictures_that_show_its_scene(tmp_path):
    make_dataset(tmp_path, 6, SMALL)
    for index, entry in enumerate(entries(tmp_path)):
        scene = SMALL.scene(index)
        files = {kind: f"{kind}/{index}.png" for kind in ("source", "target")}
        assert entry == files | {"prompt": scene.prompt}
        for kind, expected in zip(("source", "target"), render(scene, 32)[:2], strict=True):
            np.testing.assert_array_equal(cv2.imread(str(tmp_path / entry[kind]))[..., ::-1], expected)


def test_two_workers_make_the_same_files_as_one(tmp_path):
    make_dataset(tmp_path / "one", 40, SMALL, workers=1)
    make_dataset(tmp_path / "two", 40, SMALL, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_larger_count_goes_on_from_a_smaller_one_and_keeps_its_files(tmp_path):
    assert make_dataset(tmp_path, 3, SMALL) == 3
    kept = (tmp_path / "target/0.png").stat().st_mtime_ns
    (tmp_path / "source/1.png").unlink()
    assert make_dataset(tmp_path, 5, SMALL) == 3
    assert (tmp_path / "target/0.png").stat().st_mtime_ns == kept
    make_dataset(tmp_path / "fresh", 5, SMALL)
    fresh = contents(tmp_path / "fresh")
    assert {name: contents(tmp_path)[name] for name in fresh} == fresh


def test_another_seed_gives_other_samples():
    other = replace(SMALL, seed=6)
    assert all(SMALL.scene(i) != other.scene(i) for i in range(20))


@pytest.mark.parametrize("held_out", [False, True])
def test_held_out_combinations_and_training_combinations_never_meet(held_out):
    recipe = replace(SMALL, held_out=held_out)
    drawn = [recipe.scene(i) for i in range(200)]
    assert {is_held_out(scene.fill, scene.shape, scene.background) for scene in drawn} == {held_out}


def test_circles_alone_with_one_thin_line_are_the_default_task_of_the_tutorial(tmp_path, capsys):
    command = ["--out", str(tmp_path), "--count", "4", "--size", "32", "--shapes", "circle", "--workers", "1"]
    assert main(command) == 0
    assert all(" circle with " in entry["prompt"] for entry in entries(tmp_path))
    assert "4 samples" in capsys.readouterr().out


def test_a_folder_of_another_recipe_is_refused_and_left_alone(tmp_path):
    make_dataset(tmp_path, 2, SMALL)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="another recipe.*choose another folder"):
        make_dataset(tmp_path, 2, replace(SMALL, seed=6))
    assert contents(tmp_path) == before


def test_pictures_from_elsewhere_are_never_mixed_with_ours(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/0.png").write_bytes(b"somebody's")
    with pytest.raises(ValueError, match="unknown origin"):
        make_dataset(tmp_path, 1, SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": ("blob",)}, "blob unknown: choose from circle"),
        ({"shapes": ()}, "choose from circle"),
        ({"size": 1}, "2 to 4096 pixels"),
        ({"size": 5000}, "2 to 4096 pixels"),
        ({"widths": (4.0, 2.0)}, "lowest and the highest"),
        ({"widths": (0.0, 2.0)}, "above 0"),
        ({"hand_drawn": 1.5}, "between 0 and 1"),
        ({"seed": -1}, "0 or above"),
    ],
)
def test_a_recipe_that_cannot_be_cooked_says_why(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


@pytest.mark.parametrize(("count", "workers"), [(0, 1), (1, 0)])
def test_no_samples_or_no_workers_is_an_error(tmp_path, count, workers):
    with pytest.raises(ValueError, match="1 or more"):
        make_dataset(tmp_path, count, SMALL, workers)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's always full device")
def test_a_full_disk_ends_in_one_sentence_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    command = ["--out", str(tmp_path), "--count", "3", "--size", "32", "--workers", "1"]
    write = Path.write_bytes

    def full(path, content):
        with open("/dev/full" if path.parent.name == "target" else path, "wb") as file:
            file.write(content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(command) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"{tmp_path}/target/0.png was not written: No space left on device"
    assert not (tmp_path / "prompt.json").exists()
    monkeypatch.setattr(Path, "write_bytes", write)
    assert main(command) == 0
    assert len(entries(tmp_path)) == 3
    assert not list(tmp_path.rglob(".*"))


def test_a_folder_that_is_a_file_ends_in_one_sentence(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert main(["--out", str(tmp_path / "taken"), "--count", "1", "--workers", "1"]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/taken/source: Not a directory\n"


def test_bad_arguments_end_in_one_sentence(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "new"), "--shapes", *SHAPES, "blob"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_ctrl_c_leaves_only_whole_files_and_says_how_to_go_on(tmp_path):
    command = [
        sys.executable,
        "-m",
        "scenes.fill50k",
        "--out",
        str(tmp_path),
        "--count",
        "5000",
        "--size",
        "64",
    ]
    process = subprocess.Popen(
        [*command, "--workers", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not (tmp_path / "target/0.png").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the parent and its workers
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "goes on from there" in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.partial"))
    assert not (tmp_path / "prompt.json").exists()
    assert all(cv2.imread(str(path)) is not None for path in tmp_path.rglob("*.png"))
