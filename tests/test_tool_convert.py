"""The converter from the shell: round trips to the bit, refusals in one sentence, nothing half-written."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tool_convert
from checkpoints.checkpoint import open_checkpoint
from cldm.model import load_model
from tests.converted_models import write_model, write_training_checkpoint
from tests.stored_tensors import stored_tensors
from tools.convert.conversions import CONVERSIONS

ROOT = Path(__file__).parents[1]
CONTROL, TEXT = "control_model.", "cond_stage_model."


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def family(request, tmp_path_factory):
    """The folder of a small model, and its state dict."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, write_model(folder, request.param)


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd15")
    return folder, write_model(folder, "sd15")


@pytest.fixture
def run(capsys):
    def command(*words):
        code = tool_convert.main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def done(run, *words):
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    return out


def assert_same_bits(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


def networks(state):
    """What diffusers keeps: no schedule, no counted positions, nothing of SD 2.x that never runs."""
    never = (".resblocks.2.", "text_projection", "logit_scale", "position_ids")
    return {name: t for name, t in state.items() if "." in name and not any(part in name for part in never)}


def test_torch_to_safetensors_and_back_changes_no_bit(sd15, run, tmp_path):
    _, state = sd15
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    done(run, "to-safetensors", tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert_same_bits(load_file(tmp_path / "b.safetensors"), state)
    done(run, "to-dtype", tmp_path / "b.safetensors", tmp_path / "c.ckpt", "--dtype", "fp32")
    assert_same_bits(torch.load(tmp_path / "c.ckpt", weights_only=True)["state_dict"], state)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_to_full_and_back_changes_no_bit(sd15, run, tmp_path, dtype):
    folder, state = sd15
    half, full, again = (tmp_path / f"{name}.safetensors" for name in ("half", "full", "again"))
    done(run, "to-dtype", folder / "full.safetensors", half, "--dtype", dtype)
    done(run, "to-dtype", half, full, "--dtype", "fp32")
    done(run, "to-dtype", full, again, "--dtype", dtype)
    assert_same_bits(load_file(again), load_file(half))
    assert half.read_bytes() == again.read_bytes()
    assert load_file(half)["betas"].dtype == torch.float32
    assert load_file(half)["model.diffusion_model.out.2.weight"].dtype != torch.float32


def test_a_whole_model_to_diffusers_and_back_changes_no_bit_of_the_networks(family, run, tmp_path):
    folder, state = family
    there, back = tmp_path / "there", tmp_path / "back.safetensors"
    done(run, "to-diffusers", folder / "full.safetensors", there, "--config", folder / "model.yaml")
    done(run, "to-original", there, back)
    assert_same_bits(networks(load_file(back)), networks(state))
    load_model(folder / "model.yaml", back)
    model = load_model(folder / "model.yaml", there)
    assert_same_bits(networks(model.state_dict()), networks(state))


def test_diffusers_to_original_and_back_changes_no_byte(family, run, tmp_path):
    folder, _ = family
    yaml = ["--config", folder / "model.yaml"]
    one, file, two = tmp_path / "a" / "one", tmp_path / "one.ckpt", tmp_path / "b" / "one"
    done(run, "to-diffusers", folder / "full.safetensors", one, *yaml)
    done(run, "to-original", one, file)
    done(run, "to-diffusers", file, two, *yaml)
    for path in (path for path in one.rglob("*") if path.is_file()):
        other = two / path.relative_to(one)
        if path.suffix == ".safetensors":
            assert_same_bits(load_file(other), load_file(path))
        else:
            assert other.read_bytes() == path.read_bytes()


def test_a_control_branch_goes_all_the_way_round(family, run, tmp_path):
    folder, state = family
    branch = {name: tensor for name, tensor in state.items() if name.startswith(CONTROL)}
    done(run, "extract-control", folder / "full.safetensors", tmp_path / "c.pth")
    assert_same_bits(torch.load(tmp_path / "c.pth", weights_only=True), branch)
    done(run, "to-diffusers", tmp_path / "c.pth", tmp_path / "c", "--config", folder / "model.yaml")
    done(run, "to-original", tmp_path / "c", tmp_path / "again.safetensors")
    assert_same_bits(load_file(tmp_path / "again.safetensors"), branch)
    file = tmp_path / "c" / "diffusion_pytorch_model.safetensors"
    done(run, "to-original", file, tmp_path / "alone.safetensors")
    assert_same_bits(load_file(tmp_path / "alone.safetensors"), branch)


def test_a_folder_in_half_precision(family, run, tmp_path):
    folder, _ = family
    words = [
        "to-diffusers",
        folder / "full.safetensors",
        tmp_path / "half",
        "--config",
        folder / "model.yaml",
    ]
    done(run, *words, "--dtype", "fp16")
    for path in (tmp_path / "half").rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}


def test_what_sd2_never_runs_is_said(family, run, tmp_path):
    folder, state = family
    yaml, sd2 = ["--config", folder / "model.yaml"], any(".resblocks." in name for name in state)
    said = done(run, "to-diffusers", folder / "full.safetensors", tmp_path / "d", *yaml)
    assert ("left out the last text block" in said) == sd2
    assert "left out 13 tensors: schedule" in said
    said = done(run, "to-original", tmp_path / "d", tmp_path / "o.ckpt")
    assert ("is all zeros" in said) == sd2


def test_strip_takes_what_only_training_needs(sd15, run, tmp_path):
    _, state = sd15
    base, averages = write_training_checkpoint(tmp_path / "last.ckpt", state)
    planned = done(run, "strip", tmp_path / "last.ckpt", "--dry-run")
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    size = sum(tensor.nbytes for tensor in averages.values()) / 2**20
    assert f"would go: moving averages (EMA): {len(averages) + 2} tensors, {size:.1f} MiB" in planned
    assert "would go: losses of the autoencoder's own training: 1 tensors, 0.0 MiB" in planned
    assert "would go: optimizer_states: 1.0 MiB" in planned
    assert f"would stay: {len(base)} tensors" in planned
    said = done(run, "strip", tmp_path / "last.ckpt", tmp_path / "lean.ckpt")
    assert "left out optimizer_states: 1.0 MiB" in said
    assert_same_bits(lean := stored_tensors(tmp_path / "lean.ckpt"), base)
    assert list(lean) == list(base)  # optimizer states of published runs are indexed by the order
    assert open_checkpoint(tmp_path / "lean.ckpt").header.others == {}


def test_averages_can_become_the_weights(sd15, run, tmp_path):
    folder, state = sd15
    write_training_checkpoint(tmp_path / "last.ckpt", state)
    done(run, "strip", tmp_path / "last.ckpt", tmp_path / "ema.safetensors", "--use-ema")
    done(
        run, "to-diffusers", tmp_path / "last.ckpt", tmp_path / "ema", "--use-ema",
        "--config", folder / "model.yaml",
    )  # fmt: skip
    done(run, "to-original", tmp_path / "ema", tmp_path / "again.safetensors")
    for file in ("ema.safetensors", "again.safetensors"):
        found = load_file(tmp_path / file)
        for name in networks(found):
            averaged = name.startswith("model.diffusion_model.")
            assert torch.equal(found[name], state[name] + 1 if averaged else state[name])


def test_a_transfer_follows_the_base(sd15, run, tmp_path):
    folder, state = sd15
    other = write_model(tmp_path / "other", "sd15", seed=7)
    done(run, "extract-control", folder / "full.safetensors", tmp_path / "canny.safetensors")
    bases = ["--from-base", folder / "full.safetensors", "--to-base", tmp_path / "other/full.safetensors"]
    said = done(run, "transfer-control", tmp_path / "canny.safetensors", tmp_path / "new.pth", *bases)
    moved, name = stored_tensors(tmp_path / "new.pth"), "input_blocks.1.0.in_layers.2.weight"
    unet = f"model.diffusion_model.{name}"
    expected = state[CONTROL + name] + (other[unet] - state[unet])
    assert torch.equal(moved[CONTROL + name], expected)
    assert torch.equal(
        moved["control_model.zero_convs.0.0.weight"], state["control_model.zero_convs.0.0.weight"]
    )
    unchanged = sum(torch.equal(moved[key], state[key]) for key in moved)
    assert f"{unchanged} are unchanged" in said


def test_a_transfer_to_a_folder_of_the_same_base_changes_no_bit(family, run, tmp_path):
    folder, _ = family
    full = folder / "full.safetensors"
    done(run, "to-diffusers", full, tmp_path / "base", "--config", folder / "model.yaml")
    done(run, "extract-control", full, tmp_path / "c.safetensors")
    bases = ["--from-base", full, "--to-base", tmp_path / "base"]
    done(run, "transfer-control", tmp_path / "c.safetensors", tmp_path / "new.safetensors", *bases)
    assert_same_bits(load_file(tmp_path / "new.safetensors"), load_file(tmp_path / "c.safetensors"))


def test_overflow_is_counted_and_said(run, tmp_path):
    save_file({"a": torch.tensor([1e6, 1.0, -1e5]), "b": torch.ones(2)}, tmp_path / "a.safetensors")
    said = done(run, "to-dtype", tmp_path / "a.safetensors", tmp_path / "b.ckpt", "--dtype", "fp16")
    assert "2 values in 1 tensors (a) are too large for float16 and became infinite" in said


def test_metadata_of_the_source_stays_and_that_of_published_models_is_told(run, tmp_path):
    to_k = "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    state = {to_k: torch.ones(2, 768), f"{CONTROL}input_hint_block.0.weight": torch.ones(1)}
    save_file(state, tmp_path / "control_v11p_sd15_canny.safetensors", metadata={"trained_by": "me"})
    done(
        run,
        "to-dtype",
        tmp_path / "control_v11p_sd15_canny.safetensors",
        tmp_path / "h.safetensors",
        "--dtype",
        "fp16",
    )
    with safe_open(tmp_path / "h.safetensors", "pt") as file:
        told = file.metadata()
    assert told["trained_by"] == "me"
    assert told["modelspec.architecture"] == "stable-diffusion-v1/controlnet"
    assert told["modelspec.title"] == "control_v11p_sd15_canny"


UNET_SIGN = "model.diffusion_model.output_blocks.0.0.in_layers.0.weight"
FILES = {
    "w.safetensors": ["a"],
    "old.ckpt": ["a"],
    "unet.safetensors": [UNET_SIGN],
    "half.safetensors": [UNET_SIGN, "control_model.x"],
    "lora.safetensors": ["lora_unet_x.lora_up.weight"],
    "vae/diffusion_pytorch_model.safetensors": ["decoder.up_blocks.0.resnets.0.norm1.weight"],
    "folder.ckpt/w.safetensors": ["a"],
}


@pytest.fixture
def files(tmp_path):
    """All FILES in one folder."""
    for name, names in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file({one: torch.ones(2) for one in names}, tmp_path / name)
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    return tmp_path


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("to-dtype w.safetensors old.ckpt --dtype fp16", "old.ckpt is there already: --force replaces it"),
        ("to-dtype w.safetensors w.safetensors --dtype fp16 --force", "is what goes in: name another file"),
        ("to-safetensors no.ckpt o.safetensors", "no weights file .*no.ckpt"),
        ("to-safetensors w.safetensors o.ckpt", "o.ckpt: name a file that ends in .safetensors$"),
        ("strip w.safetensors out", "out: name a file that ends in .safetensors or .ckpt or"),
        ("strip w.safetensors folder.ckpt --force", "folder.ckpt is a folder: name a file"),
        (
            "to-safetensors vae o.safetensors",
            "vae is a folder: name the weights file in it, or .* to-original",
        ),
        ("to-original unet.safetensors o.ckpt", "unet.safetensors has the original names already: to-safe"),
        ("to-diffusers w.safetensors o", "w.safetensors has no part of Stable Diffusion inside"),
        ("to-diffusers half.safetensors o", "UNet2DConditionModel, ControlNetModel but no .*CLIPTextModel"),
        ("to-diffusers w.safetensors o.safetensors", "the result is a folder, name it without a suffix"),
        ("to-diffusers vae/diffusion_pytorch_model.safetensors vae --force", "vae holds what goes in"),
        ("extract-control unet.safetensors o.ckpt", "unet.safetensors: no control branch inside"),
        (
            "transfer-control half.safetensors o.ckpt --from-base w.safetensors --to-base w.safetensors",
            "half.safetensors cannot go from .* the old base has no U-Net",
        ),
        ("strip w.safetensors o.ckpt --use-ema", "w.safetensors: no moving averages"),
        ("strip w.safetensors", "name the file to write, or add --dry-run"),
        ("extract-control lora.safetensors o.ckpt", "lora.safetensors cannot be loaded: it is a LoRA"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(run, files, words, match):
    command, *rest = words.split()
    options = {"--dtype", "fp16", "--force", "--use-ema", "--from-base", "--to-base"}
    before = contents(files)
    code, out, err = run(command, *(word if word in options else files / word for word in rest))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(match, err.strip())
    assert contents(files) == before


def test_a_folder_of_other_things_is_never_replaced(sd15, run, tmp_path):
    folder, _ = sd15
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    words = [
        "to-diffusers",
        folder / "full.safetensors",
        tmp_path / "mine",
        "--config",
        folder / "model.yaml",
    ]
    assert "holds something other than a model of diffusers" in run(*words, "--force")[2]
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear"
    words[2] = tmp_path / "new"
    done(run, *words)
    assert "there already: --force" in run(*words)[2]
    done(run, *words, "--force")


def test_weights_of_another_shape_than_the_yamls_are_refused(sd15, run, tmp_path):
    folder, _ = sd15
    code, _, err = run(
        "to-diffusers", folder / "full.safetensors", tmp_path / "o", "--config", ROOT / "models/cldm_v15.yaml"
    )
    assert code == 2
    assert "made for text of width 32, but the model for text of width 768" in err
    assert "cldm_v15.yaml, --config names others" in err
    assert "--config" in run("to-diffusers", folder / "full.safetensors", tmp_path / "o")[2]


@pytest.mark.parametrize(
    "wrong", [[], ["to-dtype", "a", "b"], ["to-dtype", "a", "b", "--dtype", "fp8"], ["fly"]]
)
def test_a_wrong_command_line_is_one_sentence(run, capsys, wrong):
    with pytest.raises(SystemExit) as stopped:
        run(*wrong)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "match"),
    [
        (KeyboardInterrupt(), 130, "stopped; nothing was written"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "o.ckpt was not written: No space left"),
    ],
)
def test_interrupted_or_out_of_space_nothing_stays_behind(run, tmp_path, monkeypatch, error, code, match):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("checkpoints.files.write.raw_bytes", fail)
    source = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(2)}, source)
    got, _, err = run("to-dtype", source, tmp_path / "o.ckpt", "--dtype", "fp16")
    assert got == code
    assert match in err
    assert list(tmp_path.iterdir()) == [source]


def test_an_interrupt_that_a_library_turns_into_an_error_is_still_one(run, tmp_path, monkeypatch):
    def library(*_args, **_kwargs):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape of object type") from None

    monkeypatch.setitem(CONVERSIONS, "to-safetensors", library)
    code, _, err = run("to-safetensors", tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert (code, err) == (130, "stopped; nothing was written\n")
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_help_answers_without_torch():
    code = (
        "import sys, tool_convert\n"
        "tool_convert.parse_args(['strip', 'a', 'b'])\n"
        "assert not {'torch', 'numpy', 'tqdm', 'omegaconf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
