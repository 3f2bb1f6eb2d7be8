import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import generate
from cldm.pipeline import Pipeline
from ldm.image import read_image, read_png_text, write_png
from tests.lora_files import kohya, random_lora, write_lora
from tests.small_files import SIDE, write_small_model

ROOT = Path(__file__).parents[1]
CIRCLE = str(ROOT / "test_imgs" / "circle.png")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return str(write_small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def run(config, tmp_path, monkeypatch, capsys):
    """Run generate.py with the small model in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*flags, prompt="cyan circle", image=CIRCLE, steps=2):
        given = {"--prompt": prompt, "--image": image, "--steps": steps, "--config": config}
        wanted = {flag: value for flag, value in given.items() if value is not None and flag not in flags}
        command = [str(part) for pair in wanted.items() for part in pair] + [str(flag) for flag in flags]
        try:
            code = generate.main(command)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(run, tmp_path):
    """Run generate.py with something wrong: the one sentence it says; nothing may be made."""
    before = set(tmp_path.rglob("*"))

    def refused(*flags, **named):
        before.update(tmp_path.rglob("*"))
        code, out, err = run(*flags, **named)
        assert code == 2
        assert out == ""
        assert err.endswith("\n")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert set(tmp_path.rglob("*")) == before
        return err

    return refused


def pictures(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# Making


def test_a_picture_comes_out_with_its_request_inside(run):
    code, out, err = run("--seed", 7, "--strength", 0.5)
    assert (code, out) == (0, "outputs/circle_seed7.png\n")
    assert "1 made" in err
    assert "peak memory" in err
    text = read_png_text("outputs/circle_seed7.png")
    request = json.loads(text["request"])
    assert text["seed"] == "7"
    assert (request["prompt"], request["seed"], request["steps"]) == ("cyan circle", 7, 2)
    assert (request["resolution"], request["scale"]) == (SIDE, 2.0), "the model's defaults are filled in"
    assert request["controls"][0]["strength"] == 0.5
    assert read_image("outputs/circle_seed7.png").shape == (SIDE, SIDE, 3)


def test_the_same_request_gives_the_same_bytes(run):
    run("--out", "a")
    run("--out", "b")
    assert Path("a/circle_seed0.png").read_bytes() == Path("b/circle_seed0.png").read_bytes()


def test_a_picture_of_several_is_the_one_that_its_own_seed_gives(run):
    run("--num-samples", 3, "--seed", 4, "--out", "three")
    run("--seed", 6, "--out", "one")
    assert pictures("three") == [f"circle_seed{seed}.png" for seed in (4, 5, 6)]
    assert Path("three/circle_seed6.png").read_bytes() == Path("one/circle_seed6.png").read_bytes()


def test_a_picture_is_made_again_from_the_file_alone(run):
    run("--seed", 3, "--negative-prompt", "blue", "--sampler", "euler_ancestral", "--invert", "yes")
    code, _, _ = run(
        "--from", "outputs/circle_seed3.png", "--out", "again.png", prompt=None, image=None, steps=None
    )
    assert code == 0
    assert Path("again.png").read_bytes() == Path("outputs/circle_seed3.png").read_bytes()


def test_flags_change_a_picture_that_is_made_again(run):
    run("--seed", 3)
    run("--from", "outputs/circle_seed3.png", "--seed", 4, prompt="red star", image=None, steps=None)
    request = json.loads(read_png_text("outputs/circle_seed4.png")["request"])
    assert (request["prompt"], request["seed"], request["steps"]) == ("red star", 4, 2)


def test_another_request_never_replaces_a_picture(run):
    run()
    first = Path("outputs/circle_seed0.png").read_bytes()
    run(prompt="red star")
    run()
    assert pictures("outputs") == ["circle_seed0.png", "circle_seed0_2.png"]
    assert Path("outputs/circle_seed0.png").read_bytes() == first


def test_programs_get_the_result_as_json_and_nothing_else(run):
    code, out, err = run("--json", "--num-samples", 2)
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert [one["seed"] for one in result["pictures"]] == [0, 1]
    assert all(Path(one["path"]).is_file() and one["made"] for one in result["pictures"])
    assert result["pictures"][1]["request"]["seed"] == 1
    assert result["pictures"][0]["seconds"]["sample"] > 0
    assert result["peak_memory"]["ram"] > 0


def test_a_terminal_sees_each_step_go_by(run, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    run(steps=5)
    assert "5/5" in terminal.getvalue()


def test_several_controls_have_their_own_maps_branches_and_strengths(run, config):
    other = Path(config).with_name("other.safetensors")
    flags = ["--control", "scribble", "--control", "canny", "--branch", "own", "--branch", other]
    code, out, err = run(*flags, "--strength", 1, "--strength", 0.3, "--low", 50, "--high", 90, "--save-maps")
    assert code == 0, err
    first, second = json.loads(read_png_text(out.strip())["request"])["controls"]
    assert (first["branch"], first["strength"], first["params"]) == (None, 1, {})
    assert (second["branch"], second["strength"], second["params"]) == ("other", 0.3, {"low": 50, "high": 90})
    maps = [read_image(f"outputs/circle_seed0_map{number}.png") for number in ("", "1")]
    assert not np.array_equal(*maps)
    again = ["--from", out.strip(), "--out", "again.png"]
    assert run(*again, prompt=None, image=None, steps=None)[0] == 0
    assert Path("again.png").read_bytes() == Path(out.strip()).read_bytes()


def lora_for(config, path):
    """A LoRA of kohya's naming for the small model."""
    roles = random_lora(torch.nn.Linear(32, 32))
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    return write_lora(Path(path), kohya("unet", name, roles, 1.0))


def test_a_lora_changes_the_picture_and_travels_with_it(run, config):
    lora_for(config, "style.safetensors")
    plain = run("--out", "plain.png")
    code, out, err = run("--lora", "style.safetensors:30", "--out", "styled.png", "--json")
    assert (plain[0], code) == (0, 0), err
    assert json.loads(out)["source"]["loras"] == ["style.safetensors:30.0"]
    assert json.loads(read_png_text("styled.png")["source"])["loras"] == ["style.safetensors:30.0"]
    assert not np.array_equal(read_image("plain.png"), read_image("styled.png"))
    again = {"prompt": None, "image": None, "steps": None}
    run("--from", "styled.png", "--out", "again.png", **again)
    assert Path("again.png").read_bytes() == Path("styled.png").read_bytes()
    run("--from", "styled.png", "--lora", "style.safetensors:0", "--out", "off.png", **again)
    assert np.array_equal(read_image("off.png"), read_image("plain.png"))


def test_a_lora_that_does_not_fit_is_said(refused, tmp_path):
    write_lora(tmp_path / "xl.safetensors", {"lora_te2_x.lora_down.weight": torch.ones(1, 1)})
    assert "xl.safetensors is a LoRA for SDXL" in refused("--lora", "xl.safetensors:0.5")
    assert "no weights file nowhere.safetensors" in refused("--lora", "nowhere.safetensors")


def test_only_the_mask_is_painted_anew(run):
    colour = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:32] = 255
    write_png("photo.png", colour)
    write_png("mask.png", mask)
    code, out, err = run("--init", "photo.png", "--mask", "mask.png", "--denoise", 0.8, steps=5)
    assert code == 0, err
    made = read_image(out.strip())
    assert np.array_equal(made[32:], colour[32:])
    assert not np.array_equal(made[:32], colour[:32])


def test_saving_memory_and_ready_made_maps_work(run):
    write_png("map.png", np.eye(SIDE, dtype=np.uint8) * 255)
    flags = ["--save-memory", "--no-preprocess", "--control", "depth", "--guess-mode", "--save-maps"]
    code, _, err = run(*flags, image="map.png", prompt=None)
    assert code == 0, err
    assert np.array_equal(read_image("outputs/map_seed0_map.png")[..., 0], np.eye(SIDE) * 255)


def convert(path, mode):
    picture = Image.open(CIRCLE).resize((96, 80))
    if mode == "I;16":
        picture = Image.fromarray(np.array(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    picture.save(path)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", "RGBA"), ("a.png", "L"), ("a.png", "I;16"), ("a.jpg", "CMYK"), ("a.gif", "P")],
)
def test_every_kind_of_picture_is_read(run, tmp_path, name, mode):
    convert(tmp_path / name, mode)
    code, _, err = run(image=name)
    assert code == 0, err
    assert pictures("outputs") == ["a_seed0.png"]


# The command line itself


def test_help_answers_without_importing_torch():
    code = """
import sys, generate
try:
    generate.main(["--help"])
except SystemExit as stop:
    heavy = {"torch", "cv2", "numpy", "PIL"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy else stop.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--num-samples" in done.stdout


def test_the_list_names_every_control_and_sampler(run):
    code, out, _ = run("--list")
    assert code == 0
    assert {"canny", "scribble", "tile", "ddim", "unipc"} <= set(out.split())


# Errors


def save(name, size):
    Image.new("RGB", size, "white").save(name)
    return name


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--prompt", " "], "the prompt is empty"),
        (["--steps", 0], "steps=0: use 1 to 500"),
        (["--steps", 5000], "steps=5000: use 1 to 500"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--seed", -1], "seed=-1: use 0 to"),
        (["--seed", 2**32 - 1, "--num-samples", 2], "seed=4294967296: use 0 to 4294967295"),
        (["--num-samples", 0], "num_samples=0"),
        (["--sampler", "plms"], "unknown sampler 'plms'; known are ddim, euler"),
        (["--control", "sketch"], "control 'sketch' is not known: choose from canny"),
        (
            ["--control", "depth"],
            "depth_anything_v2 needs Depth-Anything-V2-Small-hf in models/annotators: python",
        ),
        (["--strength", -1], "strength=-1.0"),
        (["--start", 0.8, "--end", 0.2], "start=0.8, end=0.2"),
        (["--resolution", 20], "resolution=20: use 64 to 4096"),
        (["--denoise", 0.5], "--denoise below 1"),
        (["--mask", CIRCLE], "give it by --init"),
        (["--low", 50], "--low says nothing to drawing: it is an option of canny"),
        (["--control", "canny", "--low", 90, "--high", 50], "0 <= low < high"),
        (["--image", "nowhere.png"], "nowhere.png: no such file"),
        (["--image", __file__], "is no picture"),
        (["--image", "."], "is a folder, not a picture"),
        (["--init", "nowhere.png"], "nowhere.png: no such file"),
        (["--out", "made.jpg"], "name it made.png"),
        (["--out", "made.png", "--num-samples", 2], "one file for 2 pictures"),
        (["--out", CIRCLE], "the picture that goes in"),
        (["--out", f"{CIRCLE}/x"], "is a file, not a folder"),
        (["--config", "nowhere.yaml"], "no model yaml nowhere.yaml"),
        (["--config", ROOT / "pyproject.toml"], "pyproject.toml"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--weights", CIRCLE], "circle.png"),
        (["--branch", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--from", CIRCLE], "carries no request"),
        (["--batch-dir", "."], "--image and --batch-dir are two ways"),
        (["--paint"], "unrecognized arguments: --paint"),
    ],
)
def test_a_wrong_flag_is_said_in_one_sentence(refused, flags, sentence):
    assert sentence in refused(*flags)


def test_a_missing_picture_is_said(refused):
    assert "give --image FILE" in refused(image=None)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [((1, 1), "1x1 pixels"), ((20_001, 8), "at most 20000"), ((8, 19_000), "at most 8192")],
)
def test_pictures_of_impossible_sizes_are_said(refused, size, sentence):
    assert sentence in refused(image=save("a.png", size))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [(Path.unlink, "which is not there"), (lambda path: save(path, (64, 64)), "is not what it was")],
)
def test_a_picture_is_not_made_again_from_another_input(run, refused, spoil, sentence):
    run(image=save("in.png", (96, 96)))
    spoil(Path("in.png"))
    assert sentence in refused("--from", "outputs/in_seed0.png", prompt=None, image=None, steps=None)


def out_of_memory(kind):
    def call(*_, **__):
        if kind == "cpu":
            torch.empty(2**50)
        raise {"gpu": torch.OutOfMemoryError("CUDA out of memory."), "numpy": MemoryError()}[kind]

    return call


@pytest.mark.parametrize("kind", ["cpu", "gpu", "numpy"])
def test_out_of_memory_says_what_to_lower(refused, monkeypatch, kind):
    monkeypatch.setattr(Pipeline, "__call__", out_of_memory(kind))
    sentence = refused()
    assert all(flag in sentence for flag in ("--resolution", "--save-memory", "--dtype"))


def test_a_fault_of_the_program_keeps_its_traceback(run, monkeypatch):
    monkeypatch.setattr(Pipeline, "__call__", lambda *_, **__: [][0])
    with pytest.raises(IndexError):
        run()


def test_a_full_disk_is_said_and_leaves_no_half_picture(run):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code, _, err = run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert err == "outputs/circle_seed0.png was not written: File too large\n"
    assert pictures("outputs") == []


def test_ctrl_c_keeps_finished_pictures_and_nothing_half_written(run, monkeypatch):
    def interrupted(step):
        if made == [0, 1] and step.index == 1:
            raise KeyboardInterrupt

    made, call = [], Pipeline.__call__

    def calls(self, images, request, *, on_step, **options):
        result = call(self, images, request, on_step=interrupted, **options)
        made.append(request.seed)
        return result

    monkeypatch.setattr(Pipeline, "__call__", calls)
    code, _, err = run("--num-samples", 4)
    assert (code, err) == (130, "stopped; finished pictures stay (2)\n")
    assert pictures("outputs") == ["circle_seed0.png", "circle_seed1.png"]
