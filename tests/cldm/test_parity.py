"""Every network and a whole guided DDIM walk give diffusers' numbers, with the same random weights.

The weights go over by the project's own key maps (checkpoints.names.diffusers); zero convolutions hold random
weights too, or they would hide half of the control branch.
"""

import pytest
import torch

from checkpoints.names import diffusers as names
from cldm.ddim_hacked import DDIMSampler
from tests.diffusers_reference import ddim_walk, prediction, reference, residuals
from tests.small_models import SD15, SD21, build, relative_error, settings

pytest.importorskip("diffusers")

TOLERANCE = 1e-4  # relative, in fp32: what the project promises
SCALE = 7.5  # guidance multiplies what differs between two predictions, errors too
FAMILIES = pytest.mark.parametrize("family", ["sd15", "sd21"])
SETTINGS = {
    "sd15": (SD15, {}),
    "sd21": (SD21, {"parameterization": "v"}),
    "shuffle": (SD15, {"global_average_pooling": True}),
}
T = torch.tensor([3, 741])


def pair(kind):
    family, params = SETTINGS[kind]
    model = build(family, **params).requires_grad_(False)
    return model, reference(model, settings(family, **params).model.params)


@pytest.fixture(scope="module")
def pairs():
    """Our model and its reference, by kind."""
    return {kind: pair(kind) for kind in SETTINGS}


@pytest.fixture
def inputs():
    noise = torch.Generator().manual_seed(5)
    x, hint = torch.randn(2, 4, 8, 12, generator=noise), torch.rand(2, 3, 64, 96, generator=noise)
    text, negative = torch.randn(2, 2, 7, 32, generator=noise)
    return x, hint, text, negative


@FAMILIES
def test_the_unet_equals_unet2dconditionmodel(pairs, inputs, family):
    ours, theirs = pairs[family]
    x, _, text, _ = inputs
    expected = prediction(theirs, x, T, text, hint=None)
    assert relative_error(ours.model.diffusion_model(x, T, text), expected) < TOLERANCE


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_branch_equals_controlnetmodel(pairs, inputs, kind):
    ours, theirs = pairs[kind]
    x, hint, text, _ = inputs
    expected = residuals(theirs, x, T, text, hint)
    if kind == "shuffle":
        assert {residual.shape[2:] for residual in expected} == {(1, 1)}
        got = ours.control_model(x, hint, T, text)
        got = [residual.mean((2, 3), keepdim=True) for residual in got]
    else:
        got = ours.control_model(x, hint, T, text)
    for residual, wanted in zip(got, expected, strict=True):
        assert relative_error(residual, wanted) < TOLERANCE


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_controlled_unet_equals_both_together(pairs, inputs, kind):
    ours, theirs = pairs[kind]
    x, hint, text, _ = inputs
    cond = {"c_concat": [hint], "c_crossattn": [text]}
    expected = prediction(theirs, x, T, text, hint)
    assert relative_error(ours.apply_model(x, T, cond), expected) < TOLERANCE
    assert relative_error(prediction(theirs, x, T, text, hint=None), expected) > 0.01  # control matters


def test_guess_mode_is_a_scale_for_each_residual(pairs, inputs):
    ours, theirs = pairs["sd15"]
    x, hint, text, _ = inputs
    expected = residuals(theirs, x, T, text, hint, guess_mode=True)
    plain = ours.control_model(x, hint, T, text)
    scales = torch.logspace(-1, 0, len(plain))  # diffusers' own fade: a tenth to one
    for residual, scale, wanted in zip(plain, scales, expected, strict=True):
        assert relative_error(residual * scale, wanted) < TOLERANCE


@FAMILIES
@pytest.mark.parametrize("size", [(64, 64), (32, 96)], ids=str)
def test_the_autoencoder_equals_autoencoderkl(pairs, family, size):
    ours, theirs = pairs[family]
    torch.manual_seed(0)
    pixels, z = torch.rand(2, 3, *size) * 2 - 1, torch.randn(2, 4, size[0] // 8, size[1] // 8)
    posterior, expected = ours.encode_first_stage(pixels), theirs.vae.encode(pixels).latent_dist
    assert relative_error(posterior.mean, expected.mean) < TOLERANCE
    assert relative_error(posterior.std, expected.std) < TOLERANCE
    assert relative_error(ours.first_stage_model.decode(z), theirs.vae.decode(z).sample) < TOLERANCE


@FAMILIES
@pytest.mark.parametrize(("eta", "guess_mode"), [(0.0, False), (1.0, False), (0.0, True)])
def test_a_guided_ddim_walk_ends_where_diffusers_does(pairs, inputs, family, eta, guess_mode):
    ours, theirs = pairs[family]
    x_T, hint, text, negative = inputs
    cond = {"c_concat": [hint], "c_crossattn": [text]}
    uncond = {"c_concat": None if guess_mode else [hint], "c_crossattn": [negative]}
    torch.manual_seed(0)
    samples, _ = DDIMSampler(ours).sample(
        10, 2, x_T.shape[1:], cond, x_T=x_T, eta=eta, verbose=False,
        unconditional_guidance_scale=SCALE, unconditional_conditioning=uncond,
    )  # fmt: skip

    def guided(x, t):
        with_prompt = prediction(theirs, x, t, text, hint)
        without = prediction(theirs, x, t, negative, None if guess_mode else hint)
        return without + SCALE * (with_prompt - without)

    torch.manual_seed(0)
    expected = ddim_walk(guided, x_T, 10, velocity=ours.parameterization == "v", eta=eta)
    assert relative_error(samples, expected) < TOLERANCE


@FAMILIES
def test_every_norm_has_the_references_epsilon(pairs, family):
    """A wrong one hides below the tolerance: random activations are near 1, published ones need not be."""
    ours, theirs = pairs[family]
    for module, rename, twin in (
        (ours.model.diffusion_model, names.COMPONENTS["unet"].to_diffusers, theirs.unet),
        (ours.control_model, names.COMPONENTS["controlnet"].to_diffusers, theirs.control),
        (ours.first_stage_model, names.COMPONENTS["vae"].to_diffusers, theirs.vae),
    ):
        renamed = dict(zip(module.state_dict(), rename(module.state_dict()), strict=True))
        norms = {name: norm.eps for name, norm in module.named_modules() if hasattr(norm, "eps")}
        assert norms
        for name, eps in norms.items():
            assert twin.get_submodule(renamed[f"{name}.weight"].removesuffix(".weight")).eps == eps
