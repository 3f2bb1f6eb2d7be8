"""At the size of Stable Diffusion 1.5 diffusers' pipeline paints our picture; numbers are printed with `-s`.

Random weights that keep the signal's size are written as they are drawn, our model is gone before theirs
comes, and their U-Net, which is in memory twice while it loads, comes first: the run stays below 10 GB.
"""

import gc
import math
import resource
from pathlib import Path

import pytest
import torch

import tool_convert
from checkpoints.files.lazy import LazyTensor
from checkpoints.files.write import write_weights
from cldm.ddim_hacked import DDIMSampler
from cldm.model import load_model
from ldm.config import create_meta_model

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[1] / "models" / "cldm_v15.yaml"
PIXEL = 1e-3  # of values in [0, 1]: what the project promises
STEPS, SCALE, SIDE = 2, 7.5, 256
PROMPT, NEGATIVE = "A red circle, on blue", "blurry"
GB = 1e6  # of kilobytes, as getrusage counts


def draw(name, shape):
    """Weights that keep their input's variance about, norms near 1, small biases."""
    noise = torch.Generator().manual_seed(sum(map(ord, name)))
    drawn = torch.randn(shape, generator=noise)
    if len(shape) > 1:
        return drawn / math.prod(shape[1:]) ** 0.5
    return 1 + 0.2 * drawn if name.endswith("weight") else 0.2 * drawn


def write_random_model(path):
    model = create_meta_model(CONFIG)
    state = dict(model.state_dict())
    for name, tensor in model.named_parameters():
        meta = torch.empty(tensor.shape, device="meta")
        state[name] = LazyTensor(meta, lambda n=name, s=tensor.shape: draw(n, s), frozenset(), 0)
    write_weights(path, state)


def our_picture(path, x_T, hint):
    """The embeddings of both prompts, and the picture in [0, 1]."""
    model = load_model(CONFIG, path).requires_grad_(False)
    text, negative = (model.get_learned_conditioning([words]) for words in (PROMPT, NEGATIVE))
    samples, _ = DDIMSampler(model).sample(
        STEPS, 1, x_T.shape[1:], {"c_concat": [hint], "c_crossattn": [text]}, x_T=x_T, verbose=False,
        unconditional_guidance_scale=SCALE,
        unconditional_conditioning={"c_concat": [hint], "c_crossattn": [negative]},
    )  # fmt: skip
    return text, (model.decode_first_stage(samples) / 2 + 0.5).clamp(0, 1)


def their_picture(folder, x_T, hint):
    classes = {
        "unet": diffusers.UNet2DConditionModel,
        "controlnet": diffusers.ControlNetModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
    }
    parts = {}
    for name, kind in classes.items():
        parts[name] = kind.from_pretrained(folder / name)
        gc.collect()
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(folder, **parts)
    with torch.no_grad():
        text, _ = pipe.encode_prompt(PROMPT, "cpu", 1, do_classifier_free_guidance=False)
    picture = pipe(
        PROMPT, hint, negative_prompt=NEGATIVE, latents=x_T, num_inference_steps=STEPS, guidance_scale=SCALE,
        output_type="pt",
    ).images  # fmt: skip
    return text, picture


def test_their_pipeline_paints_our_picture_at_full_width(tmp_path):
    noise = torch.Generator().manual_seed(3)
    x_T = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=noise)
    hint = torch.rand(1, 3, SIDE, SIDE, generator=noise)
    write_random_model(tmp_path / "full.safetensors")
    assert (
        tool_convert.main(["to-diffusers", str(tmp_path / "full.safetensors"), str(tmp_path / "sd15")]) == 0
    )
    text, expected = our_picture(tmp_path / "full.safetensors", x_T, hint)
    gc.collect()
    (tmp_path / "full.safetensors").unlink()
    their_text, got = their_picture(tmp_path / "sd15", x_T, hint)
    figures = {
        "embeddings": (text - their_text).abs().max().item(),
        "pixels, largest difference": (expected - got).abs().max().item(),
        "pixels, mean difference": (expected - got).abs().mean().item(),
        "pixels strictly inside (0, 1)": ((expected > 0) & (expected < 1)).float().mean().item(),
        "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GB,
    }
    print("\n" + "\n".join(f"{name}: {figure:.2e}" for name, figure in figures.items()))  # noqa: T201
    assert figures["pixels, largest difference"] < PIXEL
    assert figures["pixels strictly inside (0, 1)"] > 0.5  # else any two pictures would be alike
    assert figures["peak GB"] < 10
