"""The networks at the size of Stable Diffusion 1.5 and 2.1 give diffusers' numbers, printed with `-s`.

Latents of 32x32 keep a run to minutes on two cores; the text encoders have their own full-size tests in
tests/ldm/test_encoders.py and are small here. diffusers networks share our weights: a run takes 9 GB.
"""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from cldm.ddim_hacked import DDIMSampler
from cldm.model import create_model
from ldm.config import read_config
from tests.diffusers_reference import ddim_walk, prediction, reference, residuals
from tests.small_models import TEXT, randomize, relative_error

pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow

MODELS = Path(__file__).parents[2] / "models"
TOLERANCE = 1e-4  # relative, in fp32: what the project promises
SIDE = 32  # latent pixels
SCALE = 9.0  # the published default of guidance
SMALL_TEXT = {
    "cldm_v15.yaml": {"config": TEXT},
    "cldm_v21_v.yaml": {"config": {"width": 32, "heads": 4, "layers": 2, "embed_dim": 32}},
}
T = torch.tensor([801])


@pytest.fixture(scope="module", params=SMALL_TEXT)
def pair(request):
    config = read_config(MODELS / request.param)
    text = {"model": {"params": {"cond_stage_config": {"params": SMALL_TEXT[request.param]}}}}
    config = OmegaConf.merge(config, text)
    model = randomize(create_model(config).eval()).requires_grad_(False)
    print(f"\n{request.param}: {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters")  # noqa: T201
    return model, reference(model, config.model.params), config.model.params.unet_config.params.context_dim


@pytest.fixture
def inputs(pair):
    noise = torch.Generator().manual_seed(5)
    x = torch.randn(1, 4, SIDE, SIDE, generator=noise)
    hint = torch.rand(1, 3, 8 * SIDE, 8 * SIDE, generator=noise)
    text, negative = torch.randn(2, 1, 77, pair[2], generator=noise)
    return x, hint, text, negative


def check(name, got, expected):
    error = relative_error(got, expected)
    print(f"{name}: relative error {error:.1e}")  # noqa: T201 - the figure that reports quote
    assert error < TOLERANCE


def test_unet(pair, inputs):
    ours, theirs, _ = pair
    x, _, text, _ = inputs
    check("U-Net", ours.model.diffusion_model(x, T, text), prediction(theirs, x, T, text, hint=None))


def test_control_branch(pair, inputs):
    ours, theirs, _ = pair
    x, hint, text, _ = inputs
    got, expected = ours.control_model(x, hint, T, text), residuals(theirs, x, T, text, hint)
    assert len(got) == len(expected) == 13
    for index, (one, other) in enumerate(zip(got, expected, strict=True)):
        check(f"control residual {index}", one, other)


def test_autoencoder(pair):
    ours, theirs, _ = pair
    torch.manual_seed(0)
    pixels, z = torch.rand(1, 3, 8 * SIDE, 8 * SIDE) * 2 - 1, torch.randn(1, 4, SIDE, SIDE)
    posterior, expected = ours.encode_first_stage(pixels), theirs.vae.encode(pixels).latent_dist
    check("VAE encode, mean", posterior.mean, expected.mean)
    check("VAE encode, deviation", posterior.std, expected.std)
    check("VAE decode", ours.first_stage_model.decode(z), theirs.vae.decode(z).sample)


def test_two_guided_ddim_steps(pair, inputs):
    ours, theirs, _ = pair
    x_T, hint, text, negative = inputs
    samples, _ = DDIMSampler(ours).sample(
        2, 1, x_T.shape[1:], {"c_concat": [hint], "c_crossattn": [text]}, x_T=x_T, verbose=False,
        unconditional_guidance_scale=SCALE,
        unconditional_conditioning={"c_concat": [hint], "c_crossattn": [negative]},
    )  # fmt: skip

    def guided(x, t):
        with_prompt, without = (prediction(theirs, x, t, words, hint) for words in (text, negative))
        return without + SCALE * (with_prompt - without)

    check("two DDIM steps", samples, ddim_walk(guided, x_T, 2, velocity=ours.parameterization == "v"))
