"""The published names, and scripts written for them, work as they did."""

import inspect
import pkgutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from einops import rearrange
from omegaconf import OmegaConf

import config
from annotator.canny import CannyDetector
from annotator.util import HWC3, resize_image
from cldm.ddim_hacked import DDIMSampler
from cldm.model import create_model, load_state_dict
from ldm.util import get_obj_from_str
from tests.small_models import SD15, randomize, settings

THIRTEEN_RESIDUALS = SD15 | {"channel_mult": [1, 2, 2, 2], "attention_resolutions": [4, 2, 1]}
IMPORTS = [
    "cldm.model.create_model", "cldm.model.load_state_dict", "cldm.model.get_state_dict",
    "cldm.cldm.ControlLDM", "cldm.cldm.ControlNet", "cldm.cldm.ControlledUnetModel",
    "cldm.ddim_hacked.DDIMSampler", "ldm.util.instantiate_from_config", "ldm.util.get_obj_from_str",
    "ldm.models.autoencoder.AutoencoderKL", "ldm.models.diffusion.ddim.DDIMSampler",
    "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
    "annotator.util.HWC3", "annotator.util.resize_image", "annotator.canny.CannyDetector",
    "annotator.hed.HEDdetector", "annotator.hed.nms", "annotator.shuffle.ContentShuffleDetector",
]  # fmt: skip
SIGNATURES = {
    "cldm.model:create_model": ["config_path"],
    "cldm.model:load_state_dict": ["ckpt_path", "location"],
    "cldm.cldm:ControlLDM.apply_model": ["self", "x_noisy", "t", "cond"],
    "cldm.cldm:ControlLDM.q_sample": ["self", "x_start", "t", "noise"],
    "cldm.cldm:ControlLDM.p_losses": ["self", "x_start", "cond", "t", "noise"],
    "cldm.cldm:ControlLDM.log_images": ["self", "batch", "N"],
    "cldm.cldm:ControlLDM.low_vram_shift": ["self", "is_diffusing"],
    "cldm.cldm:ControlNet.forward": ["self", "x", "hint", "timesteps", "context"],
    "annotator.util:resize_image": ["input_image", "resolution"],
}
DEMO = {"guess_mode": False, "strength": 1.0, "scale": 9.0, "seed": 12345, "eta": 0.0}
SAMPLES = 2


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A yaml and a weights file of a small model, as a user of published scripts has them."""
    folder = tmp_path_factory.mktemp("models")
    OmegaConf.save(settings(THIRTEEN_RESIDUALS), folder / "cldm_small.yaml")
    torch.manual_seed(0)
    model = randomize(create_model(str(folder / "cldm_small.yaml")))
    torch.save(model.state_dict(), folder / "control_small.pth")
    return str(folder / "cldm_small.yaml"), str(folder / "control_small.pth")


@pytest.fixture(scope="module")
def model(files):
    yaml, weights = files
    model = create_model(yaml).cpu()
    model.load_state_dict(load_state_dict(weights, location="cpu"))
    return model


@pytest.fixture(scope="module")
def photograph():
    rows, columns = np.mgrid[:100, :140]
    disc = (rows - 50) ** 2 + (columns - 60) ** 2 < 900
    return np.where(disc[..., None], (200, 60, 30), (20, 90, 160)).astype(np.uint8)


def process(model, photograph, **options):
    """A published demo's `process`, step by step in its order and with its calls."""
    demo = SimpleNamespace(**(DEMO | options))
    sampler = DDIMSampler(model)
    with torch.no_grad():
        image = resize_image(HWC3(photograph), 64)
        height, width, _ = image.shape
        detected = HWC3(CannyDetector()(image, 100, 200))
        control = torch.from_numpy(detected.copy()).float() / 255.0
        control = rearrange(torch.stack([control] * SAMPLES), "b h w c -> b c h w").clone()
        torch.manual_seed(demo.seed)
        if config.save_memory:
            model.low_vram_shift(is_diffusing=False)
        cond = {
            "c_concat": [control],
            "c_crossattn": [model.get_learned_conditioning(["a disc, best quality"] * SAMPLES)],
        }
        uncond = {
            "c_concat": None if demo.guess_mode else [control],
            "c_crossattn": [model.get_learned_conditioning(["blurry"] * SAMPLES)],
        }
        if config.save_memory:
            model.low_vram_shift(is_diffusing=True)
        fade = [0.825 ** float(12 - i) for i in range(13)] if demo.guess_mode else [1.0] * 13
        model.control_scales = [demo.strength * factor for factor in fade]
        latents, _ = sampler.sample(
            4, SAMPLES, (4, height // 8, width // 8), cond, verbose=False, eta=demo.eta,
            unconditional_guidance_scale=demo.scale, unconditional_conditioning=uncond,
        )  # fmt: skip
        if config.save_memory:
            model.low_vram_shift(is_diffusing=False)
        pixels = model.decode_first_stage(latents)
        pixels = rearrange(pixels, "b c h w -> b h w c") * 127.5 + 127.5
        pixels = pixels.cpu().numpy().clip(0, 255).astype(np.uint8)
    return [255 - detected, *pixels]


@pytest.mark.parametrize("path", IMPORTS)
def test_published_names_are_where_they_were(path):
    assert callable(get_obj_from_str(path))


@pytest.mark.parametrize("path", SIGNATURES)
def test_published_parameters_keep_their_positions(path):
    names = list(inspect.signature(pkgutil.resolve_name(path)).parameters)
    assert names[: len(SIGNATURES[path])] == SIGNATURES[path]


def test_published_attributes_are_there(model):
    assert model.parameterization == "eps"
    assert model.num_timesteps == len(model.betas) == len(model.alphas_cumprod) == 1000
    assert torch.equal(model.alphas_cumprod[:-1], model.alphas_cumprod_prev[1:])
    assert (model.scale_factor, model.learning_rate) == (0.18215, 1e-5)
    assert (model.sd_locked, model.only_mid_control, model.global_average_pooling) == (True, False, False)
    assert (len(model.control_scales), model.device) == (13, torch.device("cpu"))
    model.learning_rate, model.sd_locked, model.only_mid_control = 1e-4, False, True  # as training scripts do
    assert (model.learning_rate, model.sd_locked, model.only_mid_control) == (1e-4, False, True)
    model.learning_rate, model.sd_locked, model.only_mid_control = 1e-5, True, False


def test_a_published_script_makes_pictures_from_a_photograph(model, photograph):
    control_map, *pictures = process(model, photograph)
    assert {picture.shape for picture in (control_map, *pictures)} == {(64, 64, 3)}
    assert all(picture.dtype == np.uint8 and picture.std() > 1 for picture in pictures)
    assert not np.array_equal(*pictures)  # two draws


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"guess_mode": True}], ids=str)
def test_the_same_seed_gives_the_same_pictures_and_another_does_not(model, photograph, options):
    once, again = (process(model, photograph, **options) for _ in range(2))
    other = process(model, photograph, seed=1, **options)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not np.array_equal(once[1], other[1])


def test_guess_mode_and_strength_change_the_picture(model, photograph):
    plain = process(model, photograph)[1]
    for options in ({"guess_mode": True}, {"strength": 0.5}, {"scale": 1.0}):
        assert not np.array_equal(process(model, photograph, **options)[1], plain)


def test_saving_memory_changes_no_picture(model, photograph, monkeypatch):
    plain = process(model, photograph)
    shifts, shift = [], model.low_vram_shift
    monkeypatch.setattr(config, "save_memory", True)
    monkeypatch.setattr(
        model, "low_vram_shift", lambda is_diffusing: shifts.append(is_diffusing) or shift(is_diffusing)
    )
    saved = process(model, photograph)
    assert shifts == [False, True, False]
    assert all(np.array_equal(a, b) for a, b in zip(plain, saved, strict=True))


def test_the_first_line_of_published_scripts_runs():
    exec("from share import *", {})


def test_a_model_that_was_saved_is_the_model_that_loads(model, files):
    stored = torch.load(files[1], weights_only=True)
    assert list(stored) == list(model.state_dict())
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


def test_a_published_script_runs_in_half_precision(model, files, photograph):
    exact = process(model, photograph)
    half = create_model(files[0])
    half.load_state_dict(load_state_dict(files[1]))
    pictures = process(half.bfloat16(), photograph)
    errors = [np.abs(a.astype(float) - b).mean() for a, b in zip(exact, pictures, strict=True)]
    assert max(errors) < 8  # of 255; two pictures differ by 65. Guidance amplifies what rounding moves
