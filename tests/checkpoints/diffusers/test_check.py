"""A folder of diffusers that says otherwise than the yaml is refused; weights tell their yaml."""

import json
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from checkpoints.checkpoint import open_checkpoint
from checkpoints.diffusers.check import (
    IGNORED,
    check_parts,
    check_settings,
    choose_config,
    published_yaml,
    read_params,
)
from checkpoints.diffusers.configs import part_config
from checkpoints.names.diffusers import COMPONENTS
from ldm.config import create_meta_model, read_config

MODELS = Path(__file__).parents[3] / "models"
FEW = torch.ones(1)
SHUFFLE = "control_v11e_sd15_shuffle"
WHOLE = ("unet", "vae", "text_encoder")
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "controlnet": "ControlNetModel"}


@cache
def params(name):
    return read_config(MODELS / f"{name}.yaml").model.params


def write(folder, name, **changes):
    """A pipeline folder that agrees with models/`name`.yaml but for `changes`, part__setting=value."""
    for part in ("unet", "vae", "text_encoder", "controlnet", "scheduler"):
        config = part_config(part, params(name))
        config |= {"architectures": ["CLIPTextModel"]} if part == "text_encoder" else {}
        config |= {"_class_name": CLASSES[part]} if part in CLASSES else {}
        config |= {key.split("__")[1]: value for key, value in changes.items() if key.startswith(f"{part}__")}
        (folder / part).mkdir(parents=True)
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / file).write_text(json.dumps(config))
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        if part in COMPONENTS:  # settings alone are looked at
            save_file({COMPONENTS[part].marker_key: FEW}, folder / part / f"{stem}.safetensors")
    return folder


@pytest.mark.parametrize("name", ["cldm_v15", "cldm_v21", "cldm_v21_v"])
def test_a_folder_that_agrees_passes(tmp_path, name):
    check_settings(open_checkpoint(write(tmp_path / "sd", name)), params(name), name)


def test_what_makes_no_difference_to_a_picture_passes(tmp_path):
    folder = write(
        tmp_path / "sd", "cldm_v21",
        unet__upcast_attention=False, unet__sample_size=64, unet__attention_head_dim=[5, 10, 20, 20],
        scheduler__skip_prk_steps=True, scheduler__rescale_betas_zero_snr=False, unet__out_channels=None,
        controlnet__global_pool_conditions=True, text_encoder__eos_token_id=2,
    )  # fmt: skip
    check_settings(open_checkpoint(folder), params("cldm_v21"), "yaml")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"unet__attention_head_dim": 16}, r"unet has attention_head_dim=16, but v15.yaml means 8"),
        ({"unet__block_out_channels": [320, 640, 1280]}, r"unet has block_out_channels=\[320, 640, 1280\]"),
        ({"vae__scaling_factor": 0.13025}, r"vae has scaling_factor=0\.13025, but v15.yaml means 0\.18215"),
        ({"scheduler__prediction_type": "v_prediction"}, r"prediction_type=v_prediction, but .* epsilon$"),
        ({"scheduler__beta_end": 0.02}, r"scheduler has beta_end=0\.02"),
        ({"scheduler__rescale_betas_zero_snr": True}, r"rescale_betas_zero_snr=True, but .* False"),
        ({"text_encoder__hidden_act": "gelu"}, r"text_encoder has hidden_act=gelu, but .* quick_gelu"),
        ({"controlnet__controlnet_conditioning_channel_order": "bgr"}, r"channel_order=bgr, but .* rgb"),
        ({"controlnet__conditioning_channels": 4}, r"controlnet has conditioning_channels=4"),
    ],
    ids=str,
)
def test_a_contradiction_names_the_setting_and_both_sides(tmp_path, changes, match):
    folder = write(tmp_path / "sd", "cldm_v15", **changes)
    with pytest.raises(ValueError, match=match):
        check_settings(open_checkpoint(folder), params("cldm_v15"), "v15.yaml")


@pytest.mark.parametrize(
    ("written", "asked", "match"),
    [
        ("cldm_v21", "cldm_v15", "; models/cldm_v21.yaml fits it"),
        ("cldm_v21_v", "cldm_v21", "v_prediction, but .*; models/cldm_v21_v.yaml fits it"),
        ("cldm_v15", "cldm_v21_v", "; models/cldm_v15.yaml fits it"),
    ],
)
def test_the_yaml_that_fits_is_named(tmp_path, written, asked, match):
    with pytest.raises(ValueError, match=match):
        check_settings(open_checkpoint(write(tmp_path / "sd", written)), params(asked), asked)


def test_only_the_asked_parts_are_looked_at(tmp_path):
    folder = write(tmp_path / "sd", "cldm_v15", unet__attention_head_dim=16)
    check_settings(open_checkpoint(folder), params("cldm_v15"), "yaml", only=["controlnet"])
    check_settings(open_checkpoint(folder / "controlnet"), params("cldm_v15"), "yaml")


def test_files_and_dictionaries_pass(tmp_path):
    save_file({"a": FEW}, tmp_path / "a.safetensors")
    for source in (tmp_path / "a.safetensors", {"a": FEW}):
        check_settings(open_checkpoint(source), params("cldm_v15"), "yaml")


def test_every_published_kind_has_its_yaml():
    for width in (768, 1024):
        assert read_config(published_yaml(width)).model.params.unet_config.params.context_dim == width
    assert read_config(published_yaml(1024, "v_prediction")).model.params.parameterization == "v"
    assert published_yaml(2048) is None


ODD_VALUES = [7, -1.5, "x", "", [], [1, "y"], {}, {"a": []}, None]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "controlnet", "scheduler"])
def test_no_setting_of_any_type_is_more_than_a_sentence(tmp_path, part):
    folder, yaml = write(tmp_path / "sd", "cldm_v15"), params("cldm_v15")
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    settings, said = json.loads(file.read_text()), []
    for key, value in product([*settings, "_class_name", "architectures"], ODD_VALUES):
        file.write_text(json.dumps(settings | {key: value}))
        with suppress(ValueError):
            check_settings(open_checkpoint(folder), yaml, "yaml")
            said.append((key, value))
    passed = {key for key, value in said if value is not None and key not in IGNORED}
    assert passed <= {"_class_name", "architectures"}  # where they are empty, the weights decide


@pytest.fixture(scope="module")
def parts():
    """The parts of the published models, without memory."""
    split = {}
    for name in ("cldm_v15", "cldm_v21", "tiny"):
        state = create_meta_model(MODELS / f"{name}.yaml").state_dict()
        split[name] = {
            part: {key.removeprefix(one.prefix): t for key, t in state.items() if key.startswith(one.prefix)}
            for part, one in COMPONENTS.items()
        }
    return split


def some(parts, *names):
    return {name: parts[name] for name in names}


@pytest.mark.parametrize(
    ("family", "names", "file", "prediction", "expected"),
    [
        ("cldm_v15", WHOLE, "sd.ckpt", None, "cldm_v15"),
        ("cldm_v15", ["controlnet"], "mine.pth", None, "cldm_v15"),
        ("cldm_v15", ["controlnet"], SHUFFLE + "_fp16.safetensors", None, SHUFFLE),
        ("cldm_v15", ["text_encoder"], "text.pth", None, "cldm_v15"),
        ("cldm_v15", ["vae"], "vae.pth", None, "cldm_v15"),
        ("cldm_v21", WHOLE, "sd.ckpt", "epsilon", "cldm_v21"),
        ("cldm_v21", WHOLE, "sd.ckpt", "v_prediction", "cldm_v21_v"),
        ("cldm_v21", ["controlnet"], "mine.pth", None, "cldm_v21"),
        ("cldm_v21", ["text_encoder"], "text.pth", None, "cldm_v21"),
    ],
)  # fmt: skip
def test_the_published_yaml_that_fits_is_chosen(parts, family, names, file, prediction, expected):
    chosen = choose_config(Path(file), some(parts[family], *names), prediction)
    assert chosen == MODELS / f"{expected}.yaml"
    check_parts(Path(file), some(parts[family], *names), chosen)


def test_where_weights_do_not_tell_the_yaml_is_asked_for(parts):
    with pytest.raises(ValueError, match=r"--config models/cldm_v21.yaml .* --config models/cldm_v21_v.yaml"):
        choose_config(Path("sd.ckpt"), some(parts["cldm_v21"], *WHOLE), None)
    with pytest.raises(ValueError, match="no published model has text of width 64: .* by --config"):
        choose_config(Path("sd.ckpt"), parts["tiny"], None)


@pytest.mark.parametrize("part", COMPONENTS)
def test_a_part_of_another_shape_than_the_yamls_is_refused(parts, part):
    family = "tiny" if part == "vae" else "cldm_v21"  # the autoencoders of SD 1 and 2 are alike
    with pytest.raises(ValueError, match=r"x.ckpt.*; the settings are those of .*v15.yaml, --config names"):
        check_parts(Path("x.ckpt"), some(parts[family], part), MODELS / "cldm_v15.yaml")


def test_a_shorter_text_encoder_is_refused(parts):
    text = parts["cldm_v15"]["text_encoder"]
    short = {name: tensor for name, tensor in text.items() if ".layers.11." not in name}
    with pytest.raises(ValueError, match="width 768 with 11 layers that run, where width 768 and 12 layers"):
        check_parts(Path("x.ckpt"), {"text_encoder": short}, MODELS / "cldm_v15.yaml")


def test_a_branch_of_another_kind_has_no_form_in_diffusers(tmp_path):
    params = {"control_stage_config": {"target": "cldm.lite.ControlLite", "params": {}}}
    config = OmegaConf.merge(OmegaConf.load(MODELS / "cldm_v15.yaml"), {"model": {"params": params}})
    OmegaConf.save(config, tmp_path / "lite.yaml")
    with pytest.raises(ValueError, match="a ControlLite branch has no form in diffusers"):
        check_parts(Path("x"), {"controlnet": {"a": torch.ones(1)}}, tmp_path / "lite.yaml")


def test_a_yaml_of_something_else_is_refused(tmp_path):
    (tmp_path / "vae.yaml").write_text("model: {target: x.Y, params: {embed_dim: 4}}")
    with pytest.raises(ValueError, match="vae.yaml describes no whole model: it has no unet_config, first"):
        read_params(tmp_path / "vae.yaml")
