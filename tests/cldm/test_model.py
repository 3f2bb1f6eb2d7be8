"""Models come from yaml files and published checkpoints; what is wrong with either is one sentence."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from checkpoints.diffusers.configs import part_config
from checkpoints.diffusers.folder import CLASSES
from checkpoints.names.diffusers import COMPONENTS
from cldm.cldm import ControlNet
from cldm.model import create_model, load_control, load_model, load_state_dict
from ldm.config import read_config

MODELS = Path(__file__).parents[2] / "models"
LOGVAR, POSITIONS = "logvar", "cond_stage_model.transformer.text_model.embeddings.position_ids"


def settings(context=32):
    """A whole model of the published classes, a few thousand parameters small."""
    unet = {
        "in_channels": 4, "model_channels": 8, "attention_resolutions": [2, 1], "num_res_blocks": 1,
        "channel_mult": [1, 2], "num_heads": 2, "context_dim": context, "num_groups": 4,
    }  # fmt: skip
    vae = {"z_channels": 4, "ch": 8, "ch_mult": [1, 1], "num_res_blocks": 1, "num_groups": 4}
    text = {"hidden_size": context, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    parts = {
        "control_stage_config": {"target": "cldm.cldm.ControlNet", "params": unet | {"hint_channels": 3}},
        "unet_config": {"target": "cldm.cldm.ControlledUnetModel", "params": unet | {"out_channels": 4}},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {"embed_dim": 4, "ddconfig": vae},
        },
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"config": text | {"vocab_size": 49408}},
        },
    }
    return {"model": {"target": "cldm.cldm.ControlLDM", "params": {"timesteps": 10, **parts}}}


@pytest.fixture
def config(tmp_path):
    OmegaConf.save(settings(), tmp_path / "small.yaml")
    return tmp_path / "small.yaml"


@pytest.fixture
def published(config):
    """A small model's full state dict, every tensor drawn at random."""
    torch.manual_seed(1)
    state = create_model(config).state_dict()
    return {name: torch.randn_like(t) if t.is_floating_point() else t for name, t in state.items()}


def equal(model, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def control_only(state, prefix="control_model."):
    return {
        prefix + name[len("control_model.") :]: t
        for name, t in state.items()
        if name.startswith("control_model.")
    }


def test_create_model_builds_on_the_cpu_with_a_real_initialisation(config):
    model = create_model(str(config))
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("absent", [[], [LOGVAR], [POSITIONS], [LOGVAR, POSITIONS]], ids=str)
def test_a_published_full_dict_loads_strictly_with_or_without_constants(config, published, absent):
    model = create_model(config)
    model.load_state_dict({name: t for name, t in published.items() if name not in absent}, strict=True)
    for name, tensor in model.state_dict().items():
        assert name in absent or torch.equal(tensor, published[name])
    assert torch.equal(model.state_dict()[POSITIONS], torch.arange(77)[None])


def test_strict_loading_still_refuses_a_missing_weight(config, published):
    del published["control_model.middle_block_out.0.weight"]
    with pytest.raises(RuntimeError, match="middle_block_out.0.weight"):
        create_model(config).load_state_dict(published, strict=True)


def test_load_model_equals_create_model_then_load_state_dict(config, published, tmp_path):
    torch.save({"state_dict": published}, tmp_path / "full.ckpt")
    old_way = create_model(config)
    old_way.load_state_dict(load_state_dict(tmp_path / "full.ckpt", location="cpu"))
    assert equal(load_model(config, tmp_path / "full.ckpt"), old_way.state_dict())
    assert equal(old_way, published)


@pytest.mark.parametrize("prefix", ["control_model.", ""], ids=["prefixed", "bare"])
def test_a_base_and_a_control_file_make_one_model(config, published, tmp_path, prefix):
    base = {name: t for name, t in published.items() if not name.startswith(("control_model.", LOGVAR))}
    torch.save({"state_dict": base, "global_step": 1}, tmp_path / "base.ckpt")
    save_file(control_only(published, prefix), tmp_path / "control.safetensors")
    model = load_model(config, tmp_path / "base.ckpt", tmp_path / "control.safetensors")
    assert equal(model, published | {LOGVAR: torch.zeros(10)})
    assert not model.training


def test_float_position_ids_and_half_precision_load(config, published, tmp_path):
    merged = {name: t.half() for name, t in published.items()}
    save_file(merged, tmp_path / "merged.safetensors")
    model = load_model(config, tmp_path / "merged.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.state_dict()[POSITIONS], torch.arange(77)[None])
    assert torch.equal(model.betas, create_model(config).betas)


def test_the_asked_for_dtype_is_every_parameters_and_the_schedule_stays_exact(config, published, tmp_path):
    save_file(published, tmp_path / "full.safetensors")
    model = load_model(config, tmp_path / "full.safetensors", dtype=torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert model.alphas_cumprod.dtype == torch.float32


@pytest.mark.parametrize("full", [False, True], ids=["control-only", "full"])
def test_load_control_takes_the_branch_out_of_any_file(config, published, tmp_path, full):
    save_file(published if full else control_only(published, ""), tmp_path / "second.safetensors")
    branch = load_control(config, tmp_path / "second.safetensors")
    assert isinstance(branch, ControlNet)
    assert equal(branch, control_only(published, ""))


def test_load_control_names_a_file_without_a_branch_and_one_of_another_family(config, published, tmp_path):
    base = {name: t for name, t in published.items() if not name.startswith("control_model.")}
    save_file(base, tmp_path / "base.safetensors")
    with pytest.raises(ValueError, match="base.safetensors has no control branch"):
        load_control(config, tmp_path / "base.safetensors")
    OmegaConf.save(settings(context=64), tmp_path / "wide.yaml")
    save_file(control_only(published), tmp_path / "narrow.safetensors")
    with pytest.raises(
        ValueError, match="narrow.safetensors: made for text of width 32, but the model for .* 64"
    ):
        load_control(tmp_path / "wide.yaml", tmp_path / "narrow.safetensors")


def test_a_control_branch_of_another_family_names_both_files(config, published, tmp_path):
    OmegaConf.save(settings(context=64), tmp_path / "wide.yaml")
    wide = control_only(create_model(tmp_path / "wide.yaml").state_dict())
    save_file(published, tmp_path / "base.safetensors")
    save_file(wide, tmp_path / "canny.safetensors")
    with pytest.raises(
        ValueError, match="canny.safetensors: made for text of width 64, but .*base.safetensors for"
    ):
        load_model(config, tmp_path / "base.safetensors", tmp_path / "canny.safetensors")


def test_a_base_alone_lacks_the_control_branch(config, published, tmp_path):
    base = {name: t for name, t in published.items() if not name.startswith("control_model.")}
    save_file(base, tmp_path / "base.safetensors")
    with pytest.raises(
        ValueError, match="base.safetensors lacks .* of the control branch; .* then the control branch"
    ):
        load_model(config, tmp_path / "base.safetensors")


def test_load_state_dict_gives_the_files_own_names(tmp_path):
    torch.save({"state_dict": {"model_ema.decay": torch.ones(1)}}, tmp_path / "a.ckpt")
    assert list(load_state_dict(str(tmp_path / "a.ckpt"), location="cpu")) == ["model_ema.decay"]
    assert load_state_dict(tmp_path / "a.ckpt", location="meta")["model_ema.decay"].is_meta


@pytest.fixture
def folder(published, tmp_path):
    """The small model as folders of diffusers: a pipeline without control, and the branch by itself."""
    params = OmegaConf.create(settings()).model.params
    for part in COMPONENTS:
        prefix = COMPONENTS[part].prefix
        state = {name[len(prefix) :]: t for name, t in published.items() if name.startswith(prefix)}
        place = tmp_path / ("canny" if part == "controlnet" else f"sd/{part}")
        place.mkdir(parents=True)
        theirs = {name: t.contiguous() for name, t in COMPONENTS[part].to_diffusers(state).items()}
        save_file(theirs, place / "diffusion_pytorch_model.safetensors")
        config = part_config(part, params)
        config |= (
            {"architectures": [CLASSES[part]]} if part == "text_encoder" else {"_class_name": CLASSES[part]}
        )
        (place / "config.json").write_text(json.dumps(config))
    return tmp_path


def weights_of(published):
    """Without the constants, which diffusers does not store."""
    return {name: t for name, t in published.items() if "." in name and not name.endswith("position_ids")}


def test_folders_of_diffusers_load_like_files(config, published, folder):
    model = load_model(config, folder / "sd", folder / "canny")
    for name, tensor in weights_of(published).items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert equal(load_control(config, folder / "canny"), control_only(published, ""))


def test_published_scripts_load_folders_and_their_files(config, published, folder):
    model = create_model(config)
    single = folder / "sd/vae/diffusion_pytorch_model.safetensors"
    for path in (folder / "sd", folder / "canny", single):
        model.load_state_dict(load_state_dict(str(path), location="cpu"), strict=False)
    for name, tensor in weights_of(published).items():
        assert torch.equal(model.state_dict()[name], tensor)
    whole = load_state_dict(folder / "sd") | load_state_dict(folder / "canny")
    create_model(config).load_state_dict(whole, strict=True)


def test_a_part_of_diffusers_in_the_wrong_place_is_said(config, folder):
    with pytest.raises(
        ValueError, match="canny lacks .* tensors of the model .*U-Net.*; name a file for every"
    ):
        load_model(config, folder / "canny")
    with pytest.raises(ValueError, match="sd has no control branch"):
        load_control(config, folder / "sd")
    file = folder / "canny/config.json"
    file.write_text(file.read_text().replace('"attention_head_dim": 2', '"attention_head_dim": 4'))
    with pytest.raises(
        ValueError, match=r"canny: its controlnet has attention_head_dim=4, but .*small\.yaml"
    ):
        load_control(config, folder / "canny")


def test_a_yaml_with_a_base_changes_only_what_it_names(config):
    child = config.parent / "child.yaml"
    child.write_text("base: small.yaml\nmodel:\n  params:\n    global_average_pooling: true\n")
    grandchild = config.parent / "grandchild.yaml"
    grandchild.write_text("base: child.yaml\nmodel:\n  params:\n    timesteps: 20\n")
    params = read_config(grandchild).model.params
    assert (params.global_average_pooling, params.timesteps) == (True, 20)
    assert params.unet_config == read_config(config).model.params.unet_config
    assert create_model(read_config(grandchild)).global_average_pooling


def test_sd21_for_768_pixels_predicts_velocity():
    base, velocity = (read_config(MODELS / f"cldm_v21{tail}.yaml").model.params for tail in ("", "_v"))
    assert velocity.parameterization == "v"
    assert "parameterization" not in base
    assert velocity.unet_config == base.unet_config


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "base: nowhere.yaml",
            FileNotFoundError,
            "no model yaml .*nowhere.yaml, the base of bad.yaml; .* bad.yaml",
        ),
        ("base: bad.yaml", ValueError, "bases form a ring, bad.yaml -> bad.yaml"),
        ("model: [1", ValueError, "bad.yaml is not readable yaml"),
        ("- a\n- b", ValueError, "bad.yaml is not a model's yaml"),
        ("models: {}", ValueError, "bad.yaml has no `model:` block, only models"),
        ("model: {params: {}}", ValueError, "bad.yaml: a model part needs a `target:`"),
        ("model: {target: cldm.cldm.ControlLMD}", ValueError, "bad.yaml: target 'cldm.cldm.ControlLMD'"),
        ("model: {target: cldm.cldn.ControlLDM}", ValueError, "bad.yaml: target 'cldm.cldn.ControlLDM'"),
        ("model: {target: cldm.cldm.ControlLDM}", ValueError, "bad.yaml: .*control_stage_config"),
        (
            "base: small.yaml\nmodel: {params: {timestep: 5}}",
            ValueError,
            "bad.yaml: .* does not know timestep",
        ),
    ],
)
def test_what_is_wrong_with_a_yaml_is_said_in_one_sentence(config, text, error, message):
    (config.parent / "bad.yaml").write_text(text)
    with pytest.raises(error, match=message) as raised:
        create_model(config.parent / "bad.yaml")
    assert "\n" not in str(raised.value)


def test_a_missing_yaml_lists_its_neighbours():
    with pytest.raises(FileNotFoundError, match="no model yaml .*cldm_v51.yaml; .* has .*cldm_v15.yaml"):
        create_model(MODELS / "cldm_v51.yaml")
