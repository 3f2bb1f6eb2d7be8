import logging

import numpy as np
import pytest
import torch

from ldm.models.diffusion import schedule

PUBLISHED = [
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
    "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
]  # fmt: skip
BROKEN = [3, 9, 27, 36, 37, *range(101, 112), *range(251, 334)]


@pytest.fixture
def buffers():
    return schedule.schedule_buffers(1000, 0.00085, 0.0120)


def test_buffers_have_published_names_order_and_form(buffers):
    assert list(buffers) == PUBLISHED
    assert all(b.shape == (1000,) and b.dtype == torch.float32 for b in buffers.values())
    assert all(torch.isfinite(b).all() for b in buffers.values())


def test_betas_equal_those_of_diffusers_scaled_linear(buffers):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    torch.testing.assert_close(buffers["betas"], theirs.betas, rtol=1e-5, atol=0)
    torch.testing.assert_close(buffers["alphas_cumprod"], theirs.alphas_cumprod, rtol=1e-5, atol=0)


def test_buffers_equal_a_float64_numpy_walk_through_the_chain(buffers):
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    running, last = 1.0, {}
    for t, beta in enumerate(betas):
        before, running = running, running * (1 - beta)
        last[t] = before, running
    for t in (0, 1, 500, 999):
        before, now = last[t]
        assert buffers["alphas_cumprod"][t] == pytest.approx(now, rel=1e-6)
        assert buffers["alphas_cumprod_prev"][t] == pytest.approx(before, rel=1e-6)
        assert buffers["sqrt_recipm1_alphas_cumprod"][t] == pytest.approx((1 / now - 1) ** 0.5, rel=1e-6)
        assert buffers["log_one_minus_alphas_cumprod"][t] == pytest.approx(np.log(1 - now), rel=1e-6)


def test_posterior_is_the_product_of_the_two_gaussians(buffers):
    # Bayes: precision of x_{t-1} given x_t and x_0 is the sum of the step's and the prior's precisions.
    beta, prev = buffers["betas"][1:].double(), buffers["alphas_cumprod_prev"][1:].double()
    variance = 1 / ((1 - beta) / beta + 1 / (1 - prev))
    close = {"rtol": 1e-4, "atol": 0}  # 1 - abar loses digits in float32
    torch.testing.assert_close(buffers["posterior_variance"][1:].double(), variance, **close)
    coef1, coef2 = variance * prev.sqrt() / (1 - prev), variance * (1 - beta).sqrt() / beta
    torch.testing.assert_close(buffers["posterior_mean_coef1"][1:].double(), coef1, **close)
    torch.testing.assert_close(buffers["posterior_mean_coef2"][1:].double(), coef2, **close)
    assert buffers["posterior_variance"][0] == 0


def test_buffers_stay_on_the_cpu_inside_a_meta_device(buffers):
    with torch.device("meta"):
        inside = schedule.schedule_buffers(1000, 0.00085, 0.0120)
    for name, buffer in inside.items():
        assert buffer.device.type == "cpu", name
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500])
def test_a_count_that_divides_runs_as_asked_and_silently(steps, caplog):
    chosen = schedule.ddim_timesteps(steps)
    assert len(chosen) == steps
    assert set(np.diff(chosen)) <= {1000 // steps}
    assert chosen[0] == 1
    assert not caplog.records


@pytest.mark.parametrize(("asked", "run"), [(15, 16), (30, 31), (400, 500), (36, 37), (3, 3)])
def test_a_count_that_does_not_divide_drifts_as_published_and_is_logged(asked, run, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(schedule.ddim_timesteps(asked)) == run
    assert ("asked" in caplog.text) == (asked != run)


def test_every_count_keeps_the_published_list_less_the_timestep_that_does_not_exist():
    for steps in range(1, 501):
        published = (np.arange(0, 1000, 1000 // steps) + 1).tolist()
        assert (published[-1] == 1000) == (steps in BROKEN)
        assert schedule.ddim_timesteps(steps) == [t for t in published if t != 1000]


@pytest.mark.parametrize("steps", [501, 999, 1000, 5000])
def test_more_than_half_the_training_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"steps={steps}.*at most 500"):
        schedule.ddim_timesteps(steps)


@pytest.mark.parametrize("steps", [0, -1])
def test_less_than_one_step_is_refused(steps):
    with pytest.raises(ValueError, match=f"steps={steps}.*at least 1"):
        schedule.ddim_timesteps(steps)


def test_ddim_sigma_at_eta_one_is_the_posterior_deviation(buffers):
    for t in (1, 400, 999):  # neighbouring steps: DDIM at eta=1 is the ancestral sampler of DDPM
        abar, prev = float(buffers["alphas_cumprod"][t]), float(buffers["alphas_cumprod_prev"][t])
        deviation = float(buffers["posterior_variance"][t]) ** 0.5
        assert schedule.ddim_sigma(abar, prev, 1.0) == pytest.approx(deviation, rel=1e-3)
        assert schedule.ddim_sigma(abar, prev, 0.0) == 0
