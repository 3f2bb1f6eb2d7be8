"""What a file is gets said from its header: each form that people have, and those that do not load here."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from checkpoints.checkpoint import Checkpoint, open_checkpoint
from checkpoints.files.headers import Header, TensorHeader
from checkpoints.inspect.command import inspect, main, to_text
from checkpoints.inspect.describe import describe_model
from checkpoints.names.diffusers import COMPONENTS
from tests.hostile_files import entry, write_safetensors
from tests.lora_files import NAMINGS, kohya, random_lora, write_lora

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden"
BYTES = {"F32": 4, "F16": 2}
UNET, VAE, TEXT, CONTROL = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.",
    "control_model.",
)
# version -> (family, published numbers of parameters)
PUBLISHED = {
    "v15": ("Stable Diffusion 1.x", {"U-Net": 859_520_964, "autoencoder": 83_653_863,
                                     "text encoder": 123_060_480, "control branch": 361_279_120}),
    "v21": ("Stable Diffusion 2.x", {"U-Net": 865_910_724, "autoencoder": 83_653_863,
                                     "control branch": 364_228_240}),
}  # fmt: skip


def golden(version, *prefixes, dtype="F32"):
    """The tensors of a published model, or of some parts of it."""
    rows = (line.split("\t") for line in (GOLDEN / f"golden_keys_{version}.tsv").read_text().splitlines())
    shapes = {name: tuple(map(int, shape.split("x"))) if shape else () for name, shape in rows}
    kept = {name: shape for name, shape in shapes.items() if not prefixes or name.startswith(prefixes)}
    integers = {name for name in kept if name.endswith("position_ids")}
    return {
        name: TensorHeader("I64" if name in integers else dtype, shape, int(np.prod(shape)) * BYTES[dtype])
        for name, shape in kept.items()
    }


def described(tensors, name="model.safetensors", **more):
    return describe_model(Checkpoint(name, Path(name), Header("safetensors", 1, tensors, **more)))


@pytest.mark.parametrize("version", PUBLISHED)
def test_whole_models_are_known_with_the_published_numbers(version):
    family, counts = PUBLISHED[version]
    found = described(golden(version))
    assert found.what == f"base model with a control branch of {family}"
    assert found.family == family
    assert found.missing == ()
    parts = {part.name: part for part in found.parts}
    assert {name: parts[name].parameters for name in counts} == counts
    assert {part.dtypes for part in found.parts} == {("fp32",)}
    assert parts["U-Net"].nbytes == 4 * counts["U-Net"]


def bare(version, prefix):
    """One part without its prefix."""
    return {name.removeprefix(prefix): one for name, one in golden(version, prefix).items()}


def with_averages():
    whole = golden("v15", UNET)
    named = {"model_ema." + name.removeprefix("model.").replace(".", ""): one for name, one in whole.items()}
    return golden("v15", UNET, VAE, TEXT) | named | {"model_ema.decay": TensorHeader("F32", (), 4)}


NO_BASE, NO_CONTROL = "U-Net, autoencoder, text encoder", "control branch"
BRANCH = "control branch alone of Stable Diffusion 1.x"
# name -> (tensors, what it is, what is missing, what it steers by)
FORMS = {
    "v1-5-pruned.ckpt": (with_averages, "base model of Stable Diffusion 1.x", [NO_CONTROL], None),
    "v2-1_768-ema-pruned.ckpt": (
        lambda: golden("v21", UNET, VAE, TEXT), "base model of Stable Diffusion 2.x", [NO_CONTROL], None,
    ),
    "control_v11p_sd15_canny_fp16.safetensors": (
        lambda: golden("v15", CONTROL, dtype="F16"), BRANCH, [NO_BASE], "canny",
    ),
    "control_hed-fp16.safetensors": (lambda: bare("v15", CONTROL), BRANCH, [NO_BASE], "hed"),
    "vae-ft-mse.ckpt": (
        lambda: bare("v15", VAE), "autoencoder alone", ["U-Net, text encoder", NO_CONTROL], None,
    ),
    "unet.safetensors": (
        lambda: COMPONENTS["unet"].to_diffusers(bare("v21", UNET)),
        "U-Net alone of Stable Diffusion 2.x, in diffusers' names",
        ["autoencoder, text encoder", NO_CONTROL], None,
    ),
    "clip.safetensors": (
        lambda: golden("v15", TEXT), "text encoder alone of Stable Diffusion 1.x",
        ["U-Net, autoencoder", NO_CONTROL], None,
    ),
    "resnet.pth": (
        lambda: {"layer1.0.conv1.weight": TensorHeader("F32", (64, 64, 3, 3), 147456)},
        "no model that is known here", [], None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_named_with_what_it_lacks(name):
    make, what, missing, control = FORMS[name]
    found = described(tensors := make(), name)
    assert found.what == what
    assert [line.partition(":")[0] for line in found.missing] == missing
    assert found.control == control
    assert sum(part.nbytes for part in found.parts) == sum(one.nbytes for one in tensors.values())
    assert [part.name for part in found.parts].count("moving averages") == (name == "v1-5-pruned.ckpt")


@pytest.mark.parametrize(
    ("version", "name", "metadata", "mark", "predicts"),
    [
        ("v15", "a.ckpt", {}, None, "not stored; by convention Stable Diffusion 1.x predicts noise"),
        ("v21", "a.ckpt", {}, None, "not stored; by convention 2.x for 512 pixels .*768 velocity [^;]*$"),
        ("v21", "v2-1_768.ckpt", {}, None, "not stored; .*; this name says 768"),
        ("v21", "a", {"modelspec.prediction_type": "v"}, None, "^velocity .*, says its metadata"),
        ("v21", "a", {"modelspec.prediction_type": "epsilon"}, None, "^noise .*, says its metadata"),
        ("v15", "a", {}, "v_pred", "^velocity .*, says a mark in it"),
        ("v15", "a", {"ss_v_parameterization": "True"}, None, "^velocity .*, says a mark"),
    ],
)
def test_what_a_model_predicts_is_said_as_far_as_it_is_stored(version, name, metadata, mark, predicts):
    tensors = golden(version, UNET) | ({mark: TensorHeader("F32", (0,), 0)} if mark else {})
    assert re.search(predicts, described(tensors, name, metadata=metadata).predicts)


def test_a_control_branch_alone_predicts_nothing():
    assert described(golden("v15", CONTROL)).predicts is None


@pytest.mark.parametrize(
    ("channels", "use"), [(9, "inpainting"), (8, "InstructPix2Pix"), (5, "depth"), (4, None)]
)
def test_u_nets_with_more_inputs_are_named(channels, use):
    tensors = golden("v15", UNET)
    first = f"{UNET}input_blocks.0.0.weight"
    tensors[first] = tensors[first]._replace(shape=(320, channels, 3, 3))
    notes = " ".join(described(tensors).notes)
    assert (use in notes) if use else not notes


def test_a_size_of_its_own_is_said_and_no_published_family():
    tensors = golden("v15", UNET)
    first = f"{UNET}input_blocks.0.0.weight"
    tensors[first] = tensors[first]._replace(shape=(64, 4, 3, 3))
    assert described(tensors).family == "a size of its own (text of width 768, 64 channels)"


def test_the_shipped_files_are_known():
    found = [inspect(ROOT / "models" / f"{name}.safetensors") for name in ("tiny", "tiny_control")]
    assert [one.what for one in found] == [
        "base model of the tiny model of this project",
        "control branch alone of the tiny model of this project",
    ]


def test_a_folder_of_diffusers_is_the_sum_of_its_parts(tmp_path):
    parts = {
        "unet": ("UNet2DConditionModel", "up_blocks.0.resnets.0.norm1.weight"),
        "vae": ("AutoencoderKL", "decoder.up_blocks.0.resnets.0.norm1.weight"),
    }
    for part, (kind, sign) in parts.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({"_class_name": kind}))
        write_safetensors(tmp_path / part / "diffusion_pytorch_model.safetensors", {sign: entry()}, b"1234")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    found = inspect(tmp_path)
    assert found.format == "diffusers folder"
    assert [(part.name, part.parameters) for part in found.parts] == [("U-Net", 1), ("autoencoder", 1)]
    assert found.predicts == "velocity (v-prediction), says scheduler/scheduler_config.json"
    assert found.size == sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))


def test_training_checkpoints_show_what_lies_beside(tmp_path):
    state = {f"{CONTROL}out.weight": torch.ones(2), "betas": torch.ones(4)}
    saved = {"state_dict": state, "optimizer_states": [{"state": {0: torch.ones(1 << 18)}}], "epoch": 3}
    torch.save(saved, tmp_path / "last.ckpt")
    found = inspect(tmp_path / "last.ckpt")
    assert dict(found.beside) == {"optimizer_states": 1 << 20, "epoch": 0}
    assert "optimizer_states (1.0 MiB), epoch" in to_text(found)
    assert found.format == "torch zip"


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_every_format_is_inspected(tmp_path, kind):
    state = {f"{CONTROL}input_hint_block.0.weight": torch.ones(16, 3, 3, 3)}
    if kind == "safetensors":
        save_file(state, tmp_path / "a")
    else:
        torch.save(state, tmp_path / "a", _use_new_zipfile_serialization=kind == "zip")
    assert inspect(tmp_path / "a").what == "control branch alone"


ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def lora_state(naming, width=768, alpha=4.0):
    unet = random_lora(torch.nn.Linear(width, 320), rank=8)
    text = random_lora(torch.nn.Linear(768, 768), rank=4)
    state = NAMINGS[naming]("unet", ATTENTION, unet, alpha)
    return state | NAMINGS[naming]("text", "text_model.encoder.layers.0.mlp.fc1", text, alpha)


@pytest.mark.parametrize(
    ("naming", "said"),
    [("kohya", "kohya's"), ("peft in diffusers", "diffusers'"), ("linear layers", "diffusers'")],
)
def test_a_lora_is_said_with_its_rank_alpha_and_what_it_changes(tmp_path, naming, said):
    found = inspect(write_lora(tmp_path / "a", lora_state(naming), {"ss_sd_model_name": "some.ckpt"}))
    assert found.what == f"LoRA for Stable Diffusion 1.x, in {said} names"
    alpha = "4" if naming == "kohya" else "not stored, which means the rank"
    assert found.notes == (
        f"changes 1 weights of the U-Net and 1 weights of the text encoder; rank 4 to 8, alpha {alpha}",
        "trained from some.ckpt",
    )
    assert "--lora FILE:WEIGHT" in found.missing[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_alpha_is_read_in_every_type(tmp_path, dtype):
    state = kohya("unet", ATTENTION, random_lora(torch.nn.Linear(768, 320)), None)
    state["lora_unet_" + ATTENTION.replace(".", "_") + ".alpha"] = torch.tensor(16).to(dtype)
    assert "alpha 16" in inspect(write_lora(tmp_path / "a", state)).notes[0]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_alpha_is_read_from_files_of_torch(tmp_path, zipped):
    torch.save(lora_state("kohya", alpha=2.0), tmp_path / "a", _use_new_zipfile_serialization=zipped)
    assert "alpha 2" in inspect(tmp_path / "a").notes[0]


def test_alpha_from_diffusers_metadata(tmp_path):
    settings = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 32, "text_encoder.lora_alpha": 8})}
    found = inspect(write_lora(tmp_path / "a", lora_state("peft in diffusers"), settings))
    assert "alpha 8 to 32" in found.notes[0]


@pytest.mark.parametrize(("width", "family"), [(1024, "Stable Diffusion 2.x"), (2048, "SDXL"), (64, None)])
def test_the_text_tells_whose_lora_it_is(tmp_path, width, family):
    assert inspect(write_lora(tmp_path / "a", lora_state("kohya", width))).family == family


@pytest.mark.parametrize(
    ("name", "tensor", "what", "control"),
    [
        ("control-lora-canny-rank128.safetensors", "lora_controlnet", "a Control-LoRA", "canny"),
        ("t2iadapter_canny_sd15v2.safetensors", "body.0.in_conv.weight", "a T2I-Adapter", "canny"),
        ("ip-adapter_sd15.safetensors", "ip_adapter.1.to_k_ip.weight", "an IP-Adapter", None),
        ("some.safetensors", "lora_unet_x.hada_w1_a", "a LoHa", None),
        ("sdxl.safetensors", "conditioner.embedders.0.transformer.text_model.x", "an SDXL file", None),
    ],
)
def test_foreign_formats_are_inspected_too_and_it_is_said_that_they_do_not_load(
    tmp_path, name, tensor, what, control
):
    found = inspect(write_safetensors(tmp_path / name, {tensor: entry()}, b"1234"))
    assert found.what.startswith(what)
    assert found.control == control
    assert found.notes[0].startswith("it does not load here: ")


def test_the_command_prints_people_lines_and_programs_json(tmp_path, capsys):
    path = write_safetensors(tmp_path / "control_canny-fp16.safetensors", {f"{CONTROL}a.b": entry()}, b"1234")
    assert main([str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{path}\n  what ")
    assert "canny, says its name" in out
    assert main(["--json", str(path), str(path)]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == second
    assert first["control"] == "canny"
    assert first["parts"] == [{"name": "control branch", "parameters": 1, "nbytes": 4, "dtypes": ["fp32"]}]


def test_what_cannot_be_inspected_is_said_in_one_sentence_and_the_others_are_inspected(tmp_path, capsys):
    good = write_safetensors(tmp_path / "good", {f"{CONTROL}a.b": entry()}, b"1234")
    (tmp_path / "empty").touch()
    assert main([str(tmp_path / "empty"), str(tmp_path), str(tmp_path / "gone"), str(good)]) == 2
    said = capsys.readouterr()
    assert said.out.startswith(f"{good}\n")
    first, *others = said.err.splitlines()
    assert first.startswith(f"{tmp_path / 'empty'} is empty")
    assert len(others) == 2


def test_the_answer_comes_without_torch(tmp_path):
    path = write_safetensors(tmp_path / "a", {f"{CONTROL}a.b": entry()}, b"1234")
    command = [sys.executable, "-X", "importtime", "-m", "checkpoints.inspect", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "control branch alone" in done.stdout
    assert "safetensors" in imported
    assert "torch" not in imported


def test_a_hostile_name_or_text_never_reaches_the_terminal(tmp_path):
    evil = "\x1b[31mred\nnext line"
    path = write_safetensors(
        tmp_path / "a",
        {"__metadata__": {"modelspec.prediction_type": evil}, f"{UNET}{evil}": entry()},
        b"1234",
    )
    assert "\x1b" not in to_text(inspect(path))
    assert to_text(inspect(path)).count("?[31mred?next line") == 1


@pytest.mark.parametrize("shape", [(), (0,)])
@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.x.attn2.to_k.weight",
        "cond_stage_model.transformer.token_embedding.weight",
        "embeddings.position_embedding.weight",
    ],
)
def test_no_shape_ends_in_a_traceback(tmp_path, name, shape):
    save_file({name: torch.ones(shape)}, path := tmp_path / "odd.safetensors")
    assert inspect(path).parts
    assert open_checkpoint(path).weights().state


@pytest.mark.parametrize("alpha", ['"x"', "[1]", '{"a": 1}'])
def test_an_alpha_that_is_no_number_is_said_in_one_sentence(tmp_path, alpha):
    metadata = {"lora_adapter_metadata": f'{{"unet.lora_alpha": {alpha}}}'}
    save_file({"unet.x.lora_A.weight": torch.ones(1, 1)}, path := tmp_path / "a.safetensors", metadata)
    with pytest.raises(ValueError, match="no number"):
        inspect(path)
