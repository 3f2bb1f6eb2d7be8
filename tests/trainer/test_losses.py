"""Losses and noise are what their equations say."""

from functools import partial

import pytest
import torch

from ldm.models.diffusion.schedule import schedule_buffers
from tests.small_models import build
from trainer.losses import control_loss, draw_noise, snr_weights
from trainer.settings import Loss

SHAPE = (4, 8, 8)
draw = partial(draw_noise, shape=SHAPE, loss=Loss(), timesteps=1000)


@pytest.fixture(scope="module", params=["eps", "v"])
def model(request):
    return build(parameterization=request.param)


def inputs(b=3):
    source = torch.Generator().manual_seed(0)
    x0, hint = torch.randn(b, *SHAPE, generator=source), torch.rand(b, 3, 64, 64, generator=source)
    return x0, {"c_crossattn": [torch.randn(b, 5, 32, generator=source)], "c_concat": [hint]}


@torch.no_grad()
def test_the_loss_without_weights_is_that_of_the_model(model):
    x0, cond = inputs()
    noise = draw([1, 2, 3])
    expected, _ = model.p_losses(x0, cond, noise.t, noise.eps)
    torch.testing.assert_close(control_loss(model, x0, cond, noise), expected)


@torch.no_grad()
def test_min_snr_weighs_an_error_in_x0_by_the_clamped_ratio(model):
    """Whatever is predicted, the loss is min(SNR, gamma) |x0 - predicted x0|^2 (Hang et al., section 3)."""
    gamma, (x0, cond), noise = 5.0, inputs(), draw([10, 11, 12])
    alphas = model.alphas_cumprod[noise.t][:, None, None, None]
    x = model.q_sample(x0, noise.t, noise.eps)
    eps = model.predict_eps(x, noise.t, cond)
    predicted = (x - (1 - alphas).sqrt() * eps) / alphas.sqrt()
    weights = (alphas / (1 - alphas)).clamp(max=gamma)
    expected = (weights * (x0 - predicted) ** 2).mean()
    torch.testing.assert_close(control_loss(model, x0, cond, noise, gamma), expected, rtol=1e-3, atol=0)


def test_min_snr_weights_of_noise_never_exceed_one_and_fall_only_where_noise_is_low():
    alphas = schedule_buffers(1000, 0.00085, 0.012)["alphas_cumprod"]
    weights = snr_weights(alphas, 5.0, "eps")
    assert weights.max() <= 1
    assert torch.all((weights < 1) == (alphas / (1 - alphas) > 5))
    assert torch.all(snr_weights(alphas, 1e9, "eps") == 1)


def test_the_noise_of_a_draw_depends_on_its_number_and_the_seed_alone():
    whole, parts = draw([5, 6, 7, 8]), [draw([5, 6]), draw([7]), draw([8])]
    for name in ("t", "eps", "posterior"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    assert not torch.equal(whole.eps[0], whole.eps[1])
    assert not torch.equal(whole.eps[0], whole.posterior[0])
    assert not torch.equal(whole.eps, draw([5, 6, 7, 8], loss=Loss(seed=1)).eps)


def test_noise_is_normal_and_timesteps_uniform():
    noise = draw(range(400), shape=(1, 4, 4))
    assert abs(noise.eps.mean()) < 0.05
    assert abs(noise.eps.std() - 1) < 0.05
    assert noise.t.min() >= 0
    assert noise.t.max() <= 999
    assert abs(noise.t.float().mean() - 499.5) < 60


def test_offset_noise_moves_whole_channels():
    plain, moved = draw([3]), draw([3], loss=Loss(noise_offset=0.1))
    shift = moved.eps - plain.eps
    torch.testing.assert_close(
        shift, shift.mean(dim=(2, 3), keepdim=True).expand_as(shift), atol=1e-6, rtol=0
    )
    assert shift.abs().max() > 0
    assert torch.equal(plain.t, moved.t)
