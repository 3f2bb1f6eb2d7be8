"""Folders of diffusers load like files: whole pipelines, single parts, shards, variants, pickles."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.checkpoint import open_checkpoint
from checkpoints.diffusers.folder import find_components
from checkpoints.files.lazy import LazyTensor, read
from checkpoints.names import diffusers as names
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.unet import UNetModel

UNET = {
    "in_channels": 4, "model_channels": 8, "attention_resolutions": [2, 1], "num_res_blocks": 1,
    "channel_mult": [1, 2], "num_heads": 2, "context_dim": 6, "num_groups": 4,
}  # fmt: skip
VAE = {"z_channels": 3, "ch": 4, "ch_mult": [1, 2], "num_res_blocks": 1, "num_groups": 2}
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "controlnet": "ControlNetModel"}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def original():
    """State of a U-Net and an autoencoder under the names of a whole model."""
    torch.manual_seed(0)
    parts = {
        "model.diffusion_model.": UNetModel(**UNET),
        "first_stage_model.": AutoencoderKL(embed_dim=3, ddconfig=VAE),
    }
    return {start + name: t for start, module in parts.items() for name, t in module.state_dict().items()}


def part_of(original, part):
    prefix = names.COMPONENTS[part].prefix
    state = {name[len(prefix) :]: t for name, t in original.items() if name.startswith(prefix)}
    return {name: t.contiguous() for name, t in names.COMPONENTS[part].to_diffusers(state).items()}


def write_part(folder, original, part, file=WEIGHTS):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": CLASSES[part]}))
    state = part_of(original, part)
    save_file(state, folder / file) if file.endswith("safetensors") else torch.save(state, folder / file)
    return folder


def write_index(folder, **parts):
    index = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"], **parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def pipeline(tmp_path, original):
    for part in ("unet", "vae"):
        write_part(tmp_path / "sd" / part, original, part)
    return write_index(
        tmp_path / "sd",
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
        text_encoder=[None, None],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
    )


def assert_same(checkpoint, expected):
    tensors = checkpoint.tensors()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(read(tensor), expected[name]) for name, tensor in tensors.items())


def chosen(original, part):
    return {name: t for name, t in original.items() if name.startswith(names.COMPONENTS[part].prefix)}


def test_a_pipeline_folder_gives_the_whole_model_mapped(pipeline, original):
    checkpoint = open_checkpoint(pipeline)
    assert_same(checkpoint, original)
    assert all(isinstance(tensor, LazyTensor) for tensor in checkpoint.tensors().values())


def test_without_an_index_the_parts_that_are_there_count(pipeline, original):
    (pipeline / "model_index.json").unlink()
    assert_same(open_checkpoint(pipeline), original)


@pytest.mark.parametrize(
    "file", [WEIGHTS, WEIGHTS.replace("model.", "model.fp16."), "diffusion_pytorch_model.bin"]
)
def test_a_part_alone_in_any_of_its_files(tmp_path, original, file):
    folder = write_part(tmp_path / "anything", original, "vae", file)
    assert_same(open_checkpoint(folder), chosen(original, "vae"))


def test_full_precision_comes_before_a_variant_and_safetensors_before_pickles(tmp_path, original):
    folder = write_part(tmp_path, original, "vae")
    for other in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"):
        (folder / other).write_bytes(b"never read")
    assert_same(open_checkpoint(folder), chosen(original, "vae"))


def write_shards(folder, state, count=3):
    listed = {}
    for number in range(count):
        shard = f"diffusion_pytorch_model-{number + 1:05}-of-{count:05}.safetensors"
        some = {name: t for place, (name, t) in enumerate(state.items()) if place % count == number}
        save_file(some, folder / shard)
        listed |= dict.fromkeys(some, shard)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": listed}))


def test_shards_are_one_part(tmp_path, original):
    folder = write_part(tmp_path, original, "unet")
    (folder / WEIGHTS).unlink()
    write_shards(folder, part_of(original, "unet"))
    assert_same(open_checkpoint(folder), chosen(original, "unet"))
    (folder / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks diffusion_pytorch_model-00002-of-00003\.safetensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", ""])
def test_an_index_cannot_name_files_elsewhere(tmp_path, original, name):
    folder = write_part(tmp_path / "part", original, "vae")
    (folder / WEIGHTS).rename(tmp_path / "secret.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    with pytest.raises(ValueError, match="names a file outside its folder"):
        open_checkpoint(folder)


def test_a_file_goes_through_as_it_is(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    assert list(open_checkpoint(tmp_path / "w.safetensors").tensors()) == ["a"]


def test_settings_come_along(pipeline):
    parts = find_components(pipeline)
    assert {name: part.config["_class_name"] for name, part in parts.items()} == {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    }


def settings(part, text):
    return lambda folder: (folder / part / "config.json").write_text(text)


SPOILT = {
    "no weights": (
        lambda folder: (folder / "unet" / WEIGHTS).unlink(),
        r"unet holds no weights: fetch its diffusion_pytorch_model\.safetensors",
    ),
    "listed, not there": (
        lambda folder: write_index(folder, text_encoder=["transformers", "CLIPTextModel"]),
        r"model_index\.json lists text_encoder, but there is no such folder: fetch sd whole",
    ),
    "another family": (
        lambda folder: write_index(
            folder, _class_name="StableDiffusionXLPipeline", text_encoder_2=["t", "C"]
        ),
        "is a StableDiffusionXLPipeline: .*Stable Diffusion 1.x or 2.x",
    ),
    "another class": (
        settings("vae", '{"_class_name": "AutoencoderTiny"}'),
        r"vae holds AutoencoderTiny, where Stable Diffusion has AutoencoderKL",
    ),
    "part in the wrong place": (
        lambda folder: shutil.copytree(folder / "vae", folder / "controlnet"),
        "controlnet holds AutoencoderKL, where Stable Diffusion has ControlNetModel",
    ),
    "broken settings": (settings("unet", "{not json"), r"config\.json is not readable JSON"),
    "settings that are a list": (settings("unet", "[1]"), r"config\.json is not readable JSON"),
    "two branches": (
        lambda folder: (folder / "controlnet_1").mkdir(),
        "holds several control branches: give one of them by its own folder",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_does_not_fit_is_said_in_a_sentence(pipeline, what):
    spoil, match = SPOILT[what]
    spoil(pipeline)
    with pytest.raises((ValueError, FileNotFoundError), match=match) as raised:
        open_checkpoint(pipeline)
    assert "\n" not in str(raised.value)


def test_settings_that_contradict_the_weights_are_refused(tmp_path, original):
    folder = write_part(tmp_path, original, "unet")
    (folder / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    with pytest.raises(ValueError, match="says ControlNetModel, but the weights are .* a UNet2DCondition"):
        open_checkpoint(folder)


def test_weights_of_something_else_are_named(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    save_file({"body.0.weight": torch.ones(1)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"weights of .* are no AutoencoderKL: .*body\.0\.weight"):
        open_checkpoint(tmp_path)


def test_a_part_without_settings_is_told_by_its_names(tmp_path, original):
    folder = write_part(tmp_path, original, "vae")
    (folder / "config.json").unlink()
    assert_same(open_checkpoint(folder), chosen(original, "vae"))


@pytest.mark.parametrize("name", ["sd.safetensors", "model.safetensors"])
def test_a_folder_of_anything_else_is_refused_as_before(tmp_path, name):
    save_file({"model.diffusion_model.out.0.weight": torch.ones(1)}, tmp_path / name)
    with pytest.raises(ValueError, match=f"is a folder: .*for example {name}"):
        open_checkpoint(tmp_path)


def text_part(folder, act, width=8, layers=2):
    folder.mkdir()
    state = {"text_model.embeddings.position_embedding.weight": torch.ones(7, width)}
    for layer in range(layers):
        for head in "qkv":
            name = f"text_model.encoder.layers.{layer}.self_attn.{head}_proj.weight"
            state[name] = torch.randn(width, width)
    save_file(state, folder / "model.safetensors")
    config = {"architectures": ["CLIPTextModel"], "hidden_act": act, "model_type": "clip_text_model"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("act", "open_clip"), [("gelu", True), ("quick_gelu", False)])
def test_a_text_encoder_is_told_by_its_activation(tmp_path, act, open_clip):
    found = open_checkpoint(text_part(tmp_path / "text_encoder", act)).tensors()
    assert any("in_proj_weight" in name for name in found) == open_clip
    assert any("text_model.encoder" in name for name in found) != open_clip
