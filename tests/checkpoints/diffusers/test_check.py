"""A folder of diffusers that says otherwise than the yaml is refused; one that agrees passes."""

import json
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.checkpoint import open_checkpoint
from checkpoints.diffusers.check import IGNORED, check_settings, published_yaml
from checkpoints.diffusers.configs import part_config
from checkpoints.names.diffusers import COMPONENTS
from ldm.config import read_config

MODELS = Path(__file__).parents[3] / "models"
FEW = torch.ones(1)
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
