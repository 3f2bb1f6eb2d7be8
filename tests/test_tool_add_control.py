"""A base becomes a base with a branch: every form of it, to the bit, or one sentence and nothing written."""

import errno
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import common.atomic
import tool_add_control
import tool_add_control_sd21
import tool_convert
from cldm.model import BRANCHES, create_model, load_model, load_state_dict, with_branch
from tests.converted_models import write_model, write_training_checkpoint
from tests.stored_tensors import stored_tensors

ROOT = Path(__file__).parents[1]
CONTROL, UNET = "control_model.", "model.diffusion_model."
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small model in every form of a base; `model.yaml`, `full.safetensors`, and the base's state dict."""
    folder = tmp_path_factory.mktemp("sd15")
    state = write_model(folder, "sd15")
    base, _ = write_training_checkpoint(folder / "training.ckpt", state)
    base = {name: tensor for name, tensor in base.items() if name != "logvar"}
    save_file(base, folder / "base.safetensors")
    torch.save(base, folder / "bare.pth")
    save_file({name: tensor.half() for name, tensor in base.items()}, folder / "half.safetensors")
    save_file(
        {name: t for name, t in base.items() if "." in name and name != POSITIONS},
        folder / "lean.safetensors",
    )
    words = ["to-diffusers", folder / "full.safetensors", folder / "whole", "--config", folder / "model.yaml"]
    assert tool_convert.main([str(word) for word in words]) == 0
    (folder / "diffusers").mkdir()
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        (folder / "whole" / part).rename(folder / "diffusers" / part)
    return folder, base


@pytest.fixture
def run(capsys):
    def command(*words):
        try:
            code = tool_add_control.main([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


@pytest.fixture
def add(run, files, tmp_path):
    """Run the command on one of the files and read what it wrote."""

    def command(base, *words, name="out.ckpt"):
        code, out, err = run(files[0] / base, tmp_path / name, "--config", files[0] / "model.yaml", *words)
        assert (code, err) == (0, "")
        return stored_tensors(tmp_path / name), out

    return command


def branch_of(state):
    return {name: tensor for name, tensor in state.items() if name.startswith(CONTROL)}


def assert_same_bits(got, expected):
    assert got.keys() == expected.keys()
    assert not [name for name, tensor in expected.items() if not torch.equal(got[name], tensor)]


@pytest.mark.parametrize(
    "form", ["training.ckpt", "base.safetensors", "bare.pth", "lean.safetensors", "diffusers"]
)
def test_every_form_of_a_base_gives_the_same_file(files, add, form):
    folder, base = files
    state, _ = add(form)
    assert list(state) == list(create_model(folder / "model.yaml").state_dict())
    assert_same_bits({name: state[name] for name in base}, base)
    assert torch.equal(state["logvar"], torch.zeros_like(state["betas"]))
    assert_same_bits(state, add("base.safetensors", "--force")[0])


@pytest.mark.parametrize("name", ["out.ckpt", "out.safetensors", "out.pth"])
def test_the_file_loads_strictly_by_the_published_functions(files, add, tmp_path, name):
    folder, _ = files
    state, _ = add("training.ckpt", name=name)
    model = create_model(str(folder / "model.yaml")).cpu()
    model.load_state_dict(load_state_dict(str(tmp_path / name), location="cpu"), strict=True)
    assert_same_bits(model.state_dict(), state)
    saved = load_file(tmp_path / name) if name.endswith("safetensors") else torch.load(tmp_path / name)
    assert ("state_dict" in saved) == name.endswith("ckpt")


@pytest.mark.parametrize("use_ema", [False, True])
def test_averages_or_weights_go_into_base_and_branch_alike(files, add, use_ema):
    _, base = files
    state, said = add("training.ckpt", *(["--use-ema"] if use_ema else []))
    for name in base:
        averaged = use_ema and name.startswith(UNET)
        assert torch.equal(state[name], base[name] + 1 if averaged else base[name])
    name = "input_blocks.1.0.in_layers.2.weight"
    assert torch.equal(state[CONTROL + name], state[UNET + name])
    assert not [other for other in state if other.startswith("model_ema.")]
    assert "entries beside the weights" in said


def test_half_precision_stays_half_but_for_the_branch_and_the_schedule(files, add):
    _, base = files
    state, said = add("half.safetensors")
    for name, tensor in base.items():
        if "." not in name or name == POSITIONS:  # the schedule; half precision would spoil it
            assert torch.equal(state[name], tensor if name == POSITIONS else create_schedule()[name])
        else:
            assert torch.equal(state[name], tensor.half())
            assert state[name].dtype == torch.float16
    assert {tensor.dtype for tensor in branch_of(state).values()} == {torch.float32}
    name = "input_blocks.1.0.in_layers.2.weight"
    assert torch.equal(state[CONTROL + name], state[UNET + name].float())
    assert "the branch is in fp32" in said
    assert "computed from the yaml: betas, " in said


def create_schedule():
    from ldm.models.diffusion.schedule import schedule_buffers

    return schedule_buffers(1000, 0.00085, 0.0120)


def test_what_was_copied_and_what_is_new_is_said(files, add):
    _, base = files
    state, said = add("base.safetensors")
    lines = said.splitlines()
    copied = [name for name in branch_of(state) if UNET + name.removeprefix(CONTROL) in base]
    weights = sum(state[name].numel() for name in copied)
    assert lines[1].startswith(
        f"copied from the U-Net: {len(copied)} tensors, {weights:,} weights (time_embed.0"
    )
    told = {line.split(":")[0]: line for line in lines if line.startswith("new ")}
    begins = {"zero_convs": "all zero", "input_hint_block": "of them zero", "middle_block_out": "all zero"}
    for group, end in begins.items():
        names = [name for name in state if name.startswith(f"{CONTROL}{group}.")]
        new = sum(state[name].numel() for name in names)
        assert f"{len(names)} tensors, {new:,} weights ({group}." in told[f"new {group}"]
        assert told[f"new {group}"].endswith(end)
    assert told.keys() == {f"new {group}" for group in begins}
    assert "computed from the yaml: logvar" in lines
    assert "position" not in said  # they are in the file


@pytest.mark.parametrize("kind", BRANCHES)
def test_each_kind_of_branch_loads(files, add, tmp_path, kind):
    folder, _ = files
    state, said = add("base.safetensors", "--branch", kind)
    model = load_model(with_branch(folder / "model.yaml", kind), tmp_path / "out.ckpt")
    assert_same_bits(model.state_dict(), state)
    listed = re.findall(r"^(?:new \w+|copied from the U-Net): (\d+) tensors", said, re.MULTILINE)
    assert sum(map(int, listed)) == len(branch_of(state))


def test_the_command_line_names_the_kinds_that_there_are():
    assert tuple(BRANCHES) == get_args(tool_add_control.BranchKind)


def test_the_same_seed_gives_the_same_bytes(files, add, tmp_path):
    for name, seed in (("a.ckpt", 1), ("b.ckpt", 1), ("c.ckpt", 2)):
        add("base.safetensors", "--seed", seed, name=name)
    a, b, c = ((tmp_path / f"{name}.ckpt").read_bytes() for name in "abc")
    assert a == b != c


def test_a_branch_that_is_there_goes_only_when_told(files, run, add):
    folder, _ = files
    out = folder / "never.ckpt"
    code, _, err = run(folder / "full.safetensors", out, "--config", folder / "model.yaml", "--force")
    assert code == 2
    assert re.search("has a control branch already: train that one, or --replace-branch", err)
    assert not out.exists()
    state, said = add("full.safetensors", "--replace-branch")
    assert (state[f"{CONTROL}zero_convs.0.0.weight"] == 0).all()
    assert f"left out the control branch that was there: {len(branch_of(state))} tensors" in said


def test_a_yaml_that_names_its_base_needs_no_other(files, run, tmp_path):
    folder, _ = files
    config = OmegaConf.load(folder / "model.yaml")
    config.weights = [str(folder / "base.safetensors")]
    OmegaConf.save(config, tmp_path / "named.yaml")
    assert run("--config", tmp_path / "named.yaml", tmp_path / "a.ckpt")[0] == 0
    assert run(folder / "base.safetensors", "--config", tmp_path / "named.yaml", tmp_path / "b.ckpt")[0] == 0
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()


def test_the_tiny_base_that_ships_gets_either_branch(run, tmp_path):
    config = ROOT / "models/tiny.yaml"
    for kind in BRANCHES:
        path = tmp_path / f"{kind}.safetensors"
        assert run("--config", config, path, "--branch", kind)[0] == 0
        load_model(with_branch(config, kind), path)


MISTAKES = {
    "missing base": ("none.ckpt", [], "no weights file .*none.ckpt"),
    "wrong yaml": ("base.safetensors", ["--config", ROOT / "models/cldm_v15.yaml"],
                   "made for text of width 32, but the model for text of width 768 .*--config names others"),
    "no yaml": ("base.safetensors", ["--config", "none.yaml"], "no model yaml none.yaml"),
    "branch alone": ("control.pth", [], "control.pth has no U-Net, autoencoder, text encoder: name a file"),
    "U-Net alone": ("unet.safetensors", [], "unet.safetensors has no autoencoder, text encoder: name a file"),
    "LoRA": ("lora.safetensors", [], "lora.safetensors cannot be loaded: it is a LoRA"),
    "SDXL": ("xl.safetensors", [], "xl.safetensors cannot be loaded: it is an SDXL file"),
    "not whole": ("cut.safetensors", [], "cut.safetensors lacks 1 tensors of the model .1 of the U-Net"),
    "quantized": ("int8.safetensors", [], "in torch.int8: is the file quantized"),
    "no averages": ("base.safetensors", ["--use-ema"], "has no moving averages inside: leave out --use-ema"),
    "suffix": ("base.safetensors", [], "name a file that ends in .safetensors or .ckpt"),
    "nobody's base": (None, [], "model.yaml names no weights: give the base model in front"),
    "seed": ("base.safetensors", ["--seed", "-1"], "--seed -1: give 0 or more"),
    "kind": ("base.safetensors", ["--branch", "huge"], "invalid choice: 'huge'"),
    "flag": ("base.safetensors", ["--fly"], "unrecognized arguments: --fly"),
    "damaged": ("damaged.safetensors", [], "damaged.safetensors is damaged or cut short"),
}  # fmt: skip


@pytest.fixture(scope="module")
def wrong(files):
    """The folder with the files of MISTAKES too."""
    folder, base = files
    unet = {name: tensor for name, tensor in base.items() if name.startswith(UNET)}
    torch.save({name.replace(UNET, CONTROL): tensor for name, tensor in unet.items()}, folder / "control.pth")
    save_file(unet, folder / "unet.safetensors")
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2)}, folder / "lora.safetensors")
    save_file({"conditioner.embedders.0.x": torch.ones(2)}, folder / "xl.safetensors")
    name = f"{UNET}input_blocks.0.0.weight"
    save_file({k: t for k, t in base.items() if k != name}, folder / "cut.safetensors")
    save_file(base | {name: base[name].to(torch.int8)}, folder / "int8.safetensors")
    (folder / "damaged.safetensors").write_bytes((folder / "base.safetensors").read_bytes()[:-9])
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_code_two_and_writes_nothing(wrong, run, tmp_path, name):
    base, words, match = MISTAKES[name]
    out = tmp_path / ("out" if name == "suffix" else "out.ckpt")
    config = [] if "--config" in words else ["--config", wrong / "model.yaml"]
    code, said, err = run(*([wrong / base] if base else []), out, *config, *words)
    assert (code, said, err.count("\n")) == (2, "", 1)
    assert re.search(match, err)
    assert not list(tmp_path.iterdir())


def test_a_yaml_must_predict_what_the_folder_says(files, run, tmp_path):
    folder, _ = files
    config = OmegaConf.load(folder / "model.yaml")
    config.model.params.parameterization = "v"
    OmegaConf.save(config, tmp_path / "v.yaml")
    code, _, err = run(folder / "diffusers", tmp_path / "out.ckpt", "--config", tmp_path / "v.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "its scheduler has prediction_type=epsilon" in err


def test_an_older_file_is_replaced_only_by_force_and_never_the_base(files, run, add, tmp_path):
    folder, _ = files
    yaml = ["--config", folder / "model.yaml"]
    (tmp_path / "out.ckpt").write_text("dear")
    code, _, err = run(folder / "base.safetensors", tmp_path / "out.ckpt", *yaml)
    assert (code, err) == (2, f"{tmp_path / 'out.ckpt'} is there already: --force replaces it\n")
    assert (tmp_path / "out.ckpt").read_text() == "dear"
    add("base.safetensors", "--force")
    code, _, err = run(folder / "base.safetensors", folder / "base.safetensors", *yaml, "--force")
    assert code == 2
    assert "is what goes in" in err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), (130, "stopped; nothing was written")),
        (OSError(errno.ENOSPC, "No space left"), (2, "out.ckpt was not written: No space left")),
        (
            OSError(errno.EROFS, "Read-only file system"),
            (2, "out.ckpt was not written: Read-only file system"),
        ),
    ],
)
def test_stopped_full_or_read_only_nothing_stays_behind(files, run, tmp_path, monkeypatch, error, said):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("checkpoints.files.write.raw_bytes", fail)
    folder, _ = files
    got, _, err = run(folder / "base.safetensors", tmp_path / "out.ckpt", "--config", folder / "model.yaml")
    assert (got, err.count("\n")) == (said[0], 1)
    assert said[1] in err
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_told_before_anything_is_written(files, run, tmp_path, monkeypatch):
    usage = common.atomic.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(common.atomic.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    folder, _ = files
    code, _, err = run(folder / "base.safetensors", tmp_path / "out.ckpt", "--config", folder / "model.yaml")
    assert code == 2
    assert re.search(r"out.ckpt needs \d+ MiB, but 1 MiB are free", err)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_one_sentence(files, run, tmp_path):
    (tmp_path / "file").write_text("")
    folder, _ = files
    code, _, err = run(
        folder / "base.safetensors", tmp_path / "file/out.ckpt", "--config", folder / "model.yaml"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(r"file/\S*out\.ckpt\S* (was not written|Not a directory)", err)


def test_the_other_door_takes_the_yaml_of_its_family(run, tmp_path, capsys):
    family = write_model(tmp_path / "sd21", "sd21")
    base = {name: tensor for name, tensor in family.items() if not name.startswith(CONTROL)}
    save_file(base, tmp_path / "sd21/base.safetensors", metadata={"modelspec.prediction_type": "v"})
    words = [str(tmp_path / "sd21/base.safetensors"), str(tmp_path / "out.ckpt")]
    assert tool_add_control_sd21.main(words) == 2
    assert "models/cldm_v21.yaml means epsilon" in capsys.readouterr().err
    assert tool_add_control_sd21.main([*words, "--config", str(tmp_path / "sd21/model.yaml")]) == 0
    load_model(tmp_path / "sd21/model.yaml", tmp_path / "out.ckpt")


def test_help_answers_without_torch():
    code = (
        "import sys, tool_add_control_sd21 as door, tool_add_control as tool\n"
        "tool.parse_args(['a', 'b'], 'tool_add_control.py', 'cldm_v15.yaml')\n"
        "assert not {'torch', 'numpy', 'tqdm', 'omegaconf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
