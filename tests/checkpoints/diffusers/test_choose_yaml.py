"""The yaml of a model's weights is found by what they show; where they do not, it is asked for."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from checkpoints.diffusers.choose_yaml import check_parts, choose_config, read_params
from checkpoints.names.diffusers import COMPONENTS
from ldm.config import create_meta_model

MODELS = Path(__file__).parents[3] / "models"
SHUFFLE = "control_v11e_sd15_shuffle"
WHOLE = ("unet", "vae", "text_encoder")


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
