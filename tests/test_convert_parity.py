"""diffusers reads what we write and paints our picture; what diffusers writes, we read.

Folders are made by tool_convert and loaded by the libraries' own loaders: nothing of ours is in their way.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import generate
import tool_convert
from cldm.ddim_hacked import DDIMSampler
from cldm.model import load_model
from ldm.image import read_image
from tests.converted_models import write_model
from tests.small_models import relative_error

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

FAMILIES = pytest.mark.parametrize("family", ["sd15", "sd21"])
PIXEL = 1e-3  # of values in [0, 1]: what the project promises
STEPS, SCALE, SIDE = 10, 7.5, 64
CIRCLE = Path(__file__).parents[1] / "test_imgs" / "circle.png"
PROMPT, NEGATIVE = "A red circle, on blue", "blurry"
LOADERS = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "controlnet": diffusers.ControlNetModel,
    "text_encoder": transformers.CLIPTextModel,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of each family: our yaml and file, and the folder that tool_convert makes of them."""
    made = {}
    for family in ("sd15", "sd21"):
        folder = tmp_path_factory.mktemp(family)
        write_model(folder, family)
        words = [
            "to-diffusers",
            folder / "full.safetensors",
            folder / "sd",
            "--config",
            folder / "model.yaml",
        ]
        assert tool_convert.main([str(word) for word in words]) == 0
        made[family] = folder
    return made


def ours(folder):
    return load_model(folder / "model.yaml", folder / "full.safetensors").requires_grad_(False)


def theirs(folder):
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(folder / "sd", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pair(folders):
    """Our model and their pipeline, by family."""
    return {family: (ours(folder), theirs(folder)) for family, folder in folders.items()}


@FAMILIES
@pytest.mark.parametrize("part", LOADERS)
def test_their_loader_finds_every_tensor_of_a_part(folders, family, part):
    loaded, info = LOADERS[part].from_pretrained(folders[family] / "sd" / part, output_loading_info=True)
    assert loaded is not None
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))


@FAMILIES
def test_the_pipeline_is_complete(pair, family):
    _, pipe = pair[family]
    assert isinstance(pipe.scheduler, diffusers.DDIMScheduler)
    assert isinstance(pipe.tokenizer, transformers.CLIPTokenizer)
    assert pipe.safety_checker is None
    assert pipe.vae.config.scaling_factor == 0.18215


@FAMILIES
@pytest.mark.parametrize("prompt", [PROMPT, "", "빨간 원"])
def test_a_prompt_has_the_same_embeddings(pair, family, prompt):
    model, pipe = pair[family]
    with torch.no_grad():
        got, _ = pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
    assert relative_error(got, model.get_learned_conditioning([prompt])) < 1e-5


def our_picture(model, x_T, hint):
    """In [0, 1], not yet rounded to bytes."""
    text, negative = (model.get_learned_conditioning([words]) for words in (PROMPT, NEGATIVE))
    samples, _ = DDIMSampler(model).sample(
        STEPS, 1, x_T.shape[1:], {"c_concat": [hint], "c_crossattn": [text]}, x_T=x_T, verbose=False,
        unconditional_guidance_scale=SCALE,
        unconditional_conditioning={"c_concat": [hint], "c_crossattn": [negative]},
    )  # fmt: skip
    return (model.decode_first_stage(samples) / 2 + 0.5).clamp(0, 1)


def their_picture(pipe, x_T, hint, **options):
    return pipe(
        PROMPT, hint, negative_prompt=NEGATIVE, latents=x_T, num_inference_steps=STEPS, guidance_scale=SCALE,
        output_type="pt", **options,
    ).images  # fmt: skip


@FAMILIES
def test_their_pipeline_paints_our_picture(pair, family):
    model, pipe = pair[family]
    noise = torch.Generator().manual_seed(3)
    x_T = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=noise)
    hint = torch.rand(1, 3, SIDE, SIDE, generator=noise)
    expected = our_picture(model, x_T, hint)
    got = their_picture(pipe, x_T, hint)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < PIXEL
    inside = ((expected > 0) & (expected < 1)).float().mean()
    assert inside > 0.5  # else all would be black and white, and any two pictures alike
    without = their_picture(pipe, x_T, hint, controlnet_conditioning_scale=0.0)
    assert (without - expected).abs().max() > 100 * PIXEL  # the control matters


@FAMILIES
@pytest.mark.parametrize("form", ["plain", "shards", "fp16 variant", "pickles"])
def test_what_they_save_loads_here(pair, folders, family, form, tmp_path):
    model, pipe = pair[family]
    options = {
        "plain": {},
        "shards": {"max_shard_size": "500KB"},
        "fp16 variant": {"variant": "fp16"},
        "pickles": {"safe_serialization": False},
    }[form]
    if form == "shards":
        pipe.save_pretrained(tmp_path / "sd")
        for part in ("unet", "controlnet"):
            part_folder = tmp_path / "sd" / part
            next(part_folder.glob("*.safetensors")).unlink()
            getattr(pipe, part).save_pretrained(part_folder, **options)
        assert len(list(tmp_path.rglob("*-of-*.safetensors"))) > 2
    else:
        pipe.save_pretrained(tmp_path / "sd", **options)
    loaded = load_model(folders[family] / "model.yaml", tmp_path / "sd").state_dict()
    for name, tensor in model.state_dict().items():
        never_run = any(part in name for part in (".resblocks.2.", "text_projection", "logit_scale"))
        assert never_run or torch.equal(loaded[name], tensor), name


def test_old_names_of_the_autoencoders_attention_load_in_both(pair, folders, tmp_path):
    """Files from before diffusers 0.17: query, key, value, proj_attn."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    source = folders["sd15"] / "sd" / "vae"
    state = {}
    for name, tensor in load_file(source / "diffusion_pytorch_model.safetensors").items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        state[name] = tensor
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    model, _ = pair["sd15"]
    folder = folders["sd15"]
    again = load_model(folder / "model.yaml", folder / "full.safetensors", tmp_path)
    assert diffusers.AutoencoderKL.from_pretrained(tmp_path) is not None
    for name, tensor in model.first_stage_model.state_dict().items():
        assert torch.equal(again.first_stage_model.state_dict()[name], tensor)


def test_a_base_alone_and_a_branch_alone_make_their_pipeline_too(folders, tmp_path, pair):
    folder = folders["sd15"]
    yaml = ["--config", str(folder / "model.yaml")]
    branch, base = tmp_path / "branch.safetensors", tmp_path / "base.safetensors"
    assert tool_convert.main(["extract-control", str(folder / "full.safetensors"), str(branch)]) == 0
    whole = load_file(folder / "full.safetensors")
    save_file({k: t for k, t in whole.items() if not k.startswith("control_model.")}, base)
    for file in (branch, base):
        assert tool_convert.main(["to-diffusers", str(file), str(file.with_suffix("")), *yaml]) == 0
    assert (
        json.loads((tmp_path / "base/model_index.json").read_text())["_class_name"]
        == "StableDiffusionPipeline"
    )
    assert diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "base").unet is not None
    control = diffusers.ControlNetModel.from_pretrained(tmp_path / "branch")
    both = diffusers.StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "base", controlnet=control)
    both.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(3)
    x_T, hint = torch.randn(1, 4, 8, 8, generator=noise), torch.rand(1, 3, SIDE, SIDE, generator=noise)
    assert torch.equal(their_picture(both, x_T, hint), their_picture(pair["sd15"][1], x_T, hint))


def test_a_folder_paints_the_files_picture_from_the_shell(folders, tmp_path):
    folder, made = folders["sd15"], []
    for weights in ("full.safetensors", "sd"):
        words = {
            "--config": folder / "model.yaml", "--weights": folder / weights, "--image": CIRCLE,
            "--prompt": PROMPT, "--steps": 2, "--resolution": SIDE, "--scale": 2,
            "--out": tmp_path / f"{weights}.png",
        }  # fmt: skip
        assert generate.main([str(word) for pair in words.items() for word in pair]) == 0
        made.append(read_image(tmp_path / f"{weights}.png").astype(int))
    # sums depend on where in memory a tensor begins, and so does, rarely, the rounding to bytes
    assert np.abs(made[0] - made[1]).max() <= 1
