import inspect
import logging

import numpy as np
import pytest
import torch
from torch import nn

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.samplers import sample
from ldm.models.diffusion.schedule import schedule_buffers

SHAPE = (4, 8, 8)
BATCH = (2, *SHAPE)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # the reference works in float64, the sampler in float32


class StandIn(nn.Module):
    """The part of ControlLDM that samplers use; nonlinear in x, t and the condition, and counts its calls."""

    num_timesteps = 1000

    def __init__(self, parameterization="eps"):
        super().__init__()
        self.parameterization = parameterization
        self.calls = []
        for name, buffer in schedule_buffers(1000, 0.00085, 0.0120).items():
            self.register_buffer(name, buffer)

    def apply_model(self, x, t, cond):
        self.calls.append((t, cond))
        weight = 0.3 + t.double() / 1500
        wanted = cond["c_crossattn"][0].to(x)
        return torch.tanh(x + wanted) * weight.to(x)[:, None, None, None]

    def q_sample(self, x_start, t, noise=None):
        noise = torch.randn_like(x_start) if noise is None else noise
        abar = self.alphas_cumprod[t][:, None, None, None]
        return abar.sqrt() * x_start + (1 - abar).sqrt() * noise


@pytest.fixture(autouse=True)
def own_global_generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        yield


@pytest.fixture
def model():
    return StandIn()


def conditioning(value):
    return {"c_concat": None, "c_crossattn": [torch.full((2, 1, 1, 1), value)]}


COND, UNCOND = conditioning(0.8), conditioning(-0.3)


def plain_loop(model, timesteps, *, eta, scale=1.0, seed=5):
    """Song et al. 2021, eq. 12 and 16, written out in float64 with the published draw order."""
    torch.manual_seed(seed)
    x = torch.randn(BATCH).double()
    abar = model.alphas_cumprod.double()
    for here, there in zip(reversed(timesteps), [*reversed(timesteps[:-1]), 0], strict=True):
        t = torch.full((2,), here)
        out = model.apply_model(x, t, COND)
        if scale != 1:
            uncond = model.apply_model(x, t, UNCOND)
            out = uncond + scale * (out - uncond)
        a, a_prev = abar[here], abar[there]
        if model.parameterization == "v":
            x0, eps = a**0.5 * x - (1 - a) ** 0.5 * out, a**0.5 * out + (1 - a) ** 0.5 * x
        else:
            x0, eps = (x - (1 - a) ** 0.5 * out) / a**0.5, out
        sigma = eta * ((1 - a_prev) / (1 - a)) ** 0.5 * (1 - a / a_prev) ** 0.5
        noise = torch.randn(BATCH).double()
        x = a_prev**0.5 * x0 + (1 - a_prev - sigma**2) ** 0.5 * eps + sigma * noise
    return x.float()


@pytest.mark.parametrize("parameterization", ["eps", "v"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("asked", "stride"), [(5, 200), (20, 50), (15, 66)])
def test_the_published_call_walks_equation_12(asked, stride, eta, parameterization):
    model = StandIn(parameterization)
    samples, _ = DDIMSampler(model).sample(
        asked, 2, SHAPE, COND, verbose=False, eta=eta,
        unconditional_guidance_scale=7.5, unconditional_conditioning=UNCOND,
    )  # fmt: skip
    after = torch.get_rng_state()
    reference = plain_loop(model, list(range(1, 1001, stride)), eta=eta, scale=7.5)
    torch.testing.assert_close(samples, reference, **CLOSE)
    assert torch.equal(torch.get_rng_state(), after)  # not one draw more or less


def test_walk_equals_that_of_diffusers_ddim(model):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(20)
    x_T = torch.randn(BATCH)
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(model.apply_model(x, t.expand(2), COND), t, x).prev_sample
    samples, _ = DDIMSampler(model).sample(20, 2, SHAPE, COND, x_T=x_T)
    assert (samples - x).norm() / x.norm() < 1e-4


def test_it_is_a_face_over_the_ddim_sampler_function(model):
    x_T = torch.randn(BATCH)
    face, _ = DDIMSampler(model).sample(10, 2, SHAPE, COND, x_T=x_T)
    function = sample("ddim", lambda x, t: model.apply_model(x, t, COND), x_T, 10, model.alphas_cumprod)
    assert torch.equal(face, function)


def test_first_draw_is_x_T_and_a_given_x_T_skips_it(model):
    samples, kept = DDIMSampler(model).sample(5, 2, SHAPE, COND, eta=1.0)
    torch.manual_seed(5)
    x_T = torch.randn(BATCH)
    assert torch.equal(kept["x_inter"][0], x_T)
    again, _ = DDIMSampler(model).sample(5, 2, SHAPE, COND, eta=1.0, x_T=x_T)
    assert torch.equal(again, samples)


def test_parameters_keep_their_published_positions():
    names = list(inspect.signature(DDIMSampler.sample).parameters)
    assert names == [
        "self", "S", "batch_size", "shape", "conditioning", "callback", "normals_sequence", "img_callback",
        "quantize_x0", "eta", "mask", "x0", "temperature", "noise_dropout", "score_corrector",
        "corrector_kwargs", "verbose", "x_T", "log_every_t", "unconditional_guidance_scale",
        "unconditional_conditioning", "dynamic_threshold", "ucg_schedule", "kwargs",
    ]  # fmt: skip
    for method in ("make_schedule", "p_sample_ddim", "encode", "decode", "stochastic_encode"):
        assert hasattr(DDIMSampler, method)


def test_the_old_import_path_leads_to_the_same_class():
    from cldm.ddim_hacked import DDIMSampler as hacked

    assert hacked is DDIMSampler


def test_schedule_attributes_follow_the_published_definitions(model):
    sampler = DDIMSampler(model)
    sampler.make_schedule(20, ddim_eta=0.7, verbose=False)
    chosen = np.arange(0, 1000, 50) + 1
    abar = model.alphas_cumprod.double().numpy()
    previous = np.concatenate([abar[:1], abar[chosen[:-1]]])
    sigmas = 0.7 * np.sqrt((1 - previous) / (1 - abar[chosen]) * (1 - abar[chosen] / previous))
    assert np.array_equal(sampler.ddim_timesteps, chosen)
    np.testing.assert_allclose(sampler.ddim_alphas, abar[chosen], rtol=1e-6)
    np.testing.assert_allclose(sampler.ddim_alphas_prev, previous, rtol=1e-6)
    np.testing.assert_allclose(sampler.ddim_sigmas, sigmas, rtol=1e-5)
    np.testing.assert_allclose(sampler.ddim_sqrt_one_minus_alphas, np.sqrt(1 - abar[chosen]), rtol=1e-5)


def test_guidance_calls_the_model_for_cond_then_uncond_at_each_step(model):
    options = {"unconditional_conditioning": UNCOND, "x_T": torch.randn(BATCH)}
    DDIMSampler(model).sample(5, 2, SHAPE, COND, unconditional_guidance_scale=9.0, **options)
    assert [cond is COND for _, cond in model.calls] == [True, False] * 5
    model.calls.clear()
    DDIMSampler(model).sample(5, 2, SHAPE, COND, unconditional_guidance_scale=1.0, **options)
    assert [int(t[0]) for t, _ in model.calls] == [801, 601, 401, 201, 1]
    assert all(t.dtype == torch.int64 and cond is COND for t, cond in model.calls)


def test_ucg_schedule_replaces_the_scale_step_by_step(model):
    x_T = torch.randn(BATCH)
    options = {"unconditional_conditioning": UNCOND, "x_T": x_T}
    constant, _ = DDIMSampler(model).sample(5, 2, SHAPE, COND, unconditional_guidance_scale=4.0, **options)
    listed, _ = DDIMSampler(model).sample(5, 2, SHAPE, COND, ucg_schedule=[4.0] * 5, **options)
    assert torch.equal(constant, listed)
    model.calls.clear()
    DDIMSampler(model).sample(5, 2, SHAPE, COND, ucg_schedule=[1.0, 1.0, 4.0, 1.0, 1.0], **options)
    assert [cond is COND for _, cond in model.calls] == [True, True, True, False, True, True]
    with pytest.raises(ValueError, match="ucg_schedule has 3 scales for 5 steps"):
        DDIMSampler(model).sample(5, 2, SHAPE, COND, ucg_schedule=[1.0] * 3, **options)


def test_intermediates_start_at_x_T_and_count_from_the_end(model):
    seen = []
    samples, kept = DDIMSampler(model).sample(
        20, 2, SHAPE, COND, log_every_t=5, img_callback=lambda x0, i: seen.append(x0)
    )
    assert set(kept) == {"x_inter", "pred_x0"}
    wanted = [i for i in range(20) if (19 - i) % 5 == 0 or i == 0]  # steps 0, 4, 9, 14, 19
    assert len(kept["x_inter"]) == len(kept["pred_x0"]) == 1 + len(wanted)
    assert torch.equal(kept["x_inter"][0], kept["pred_x0"][0])
    assert torch.equal(kept["x_inter"][-1], samples)
    assert all(torch.equal(a, seen[i]) for a, i in zip(kept["pred_x0"][1:], wanted, strict=True))


def test_callbacks_hear_each_step_in_order(model):
    plain, pictures = [], []
    DDIMSampler(model).sample(
        5, 2, SHAPE, COND, callback=plain.append, img_callback=lambda x0, i: pictures.append((x0.shape, i))
    )
    assert plain == list(range(5))
    assert pictures == [(torch.Size(BATCH), i) for i in range(5)]


def test_mask_noise_is_drawn_before_the_noise_of_its_step(model):
    known, mask = torch.full(BATCH, 0.5), torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1
    levels = []
    model.apply_model = lambda x, t, cond: levels.append((x, t)) or torch.zeros_like(x)
    samples, _ = DDIMSampler(model).sample(5, 2, SHAPE, COND, mask=mask, x0=known)
    torch.manual_seed(5)
    torch.randn(BATCH)
    for x, t in levels:
        expected = model.q_sample(known, t)
        torch.randn(BATCH)
        assert torch.equal(x[..., :4], expected[..., :4])
    with pytest.raises(ValueError, match="a mask needs x0"):
        DDIMSampler(model).sample(5, 2, SHAPE, COND, mask=mask)


def test_single_steps_walk_as_the_whole(model):
    sampler = DDIMSampler(model)
    guidance = {"unconditional_guidance_scale": 3.0, "unconditional_conditioning": UNCOND}
    samples, kept = sampler.sample(10, 2, SHAPE, COND, eta=0.5, **guidance)
    torch.manual_seed(5)
    x = torch.randn(BATCH)
    for index in reversed(range(10)):
        t = torch.full((2,), int(sampler.ddim_timesteps[index]))
        x, x0 = sampler.p_sample_ddim(x, COND, t, index, **guidance)
    assert torch.equal(x, samples)
    assert torch.equal(x0, kept["pred_x0"][-1])


def test_repeated_noise_is_one_draw_for_the_batch(model):
    sampler = DDIMSampler(model)
    sampler.make_schedule(10, ddim_eta=1.0, verbose=False)
    x = torch.randn(1, *SHAPE).expand(BATCH)
    out, _ = sampler.p_sample_ddim(x, COND, torch.tensor([901, 901]), 9, repeat_noise=True)
    assert torch.equal(out[0], out[1])
    out, _ = sampler.p_sample_ddim(x, COND, torch.tensor([901, 901]), 9)
    assert not torch.equal(out[0], out[1])


def test_temperature_zero_and_full_dropout_silence_the_noise(model):
    runs = []
    for options in ({"temperature": 0.0}, {"noise_dropout": 1.0}, {}):
        torch.manual_seed(1)
        runs.append(DDIMSampler(model).sample(5, 2, SHAPE, COND, eta=1.0, **options)[0])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_full_decode_equals_sample_and_a_shorter_one_starts_lower(model):
    sampler = DDIMSampler(model)
    x_T = torch.randn(BATCH)
    samples, _ = sampler.sample(10, 2, SHAPE, COND, x_T=x_T)
    assert torch.equal(sampler.decode(x_T, COND, 10), samples)
    model.calls.clear()
    heard = []
    sampler.decode(x_T, COND, 4, 2.0, UNCOND, callback=heard.append)
    assert [int(t[0]) for t, _ in model.calls[::2]] == [301, 201, 101, 1]
    assert heard == [0, 1, 2, 3]


def test_original_steps_decode_visits_every_timestep_and_ends_clean(model):
    sampler = DDIMSampler(model)
    sampler.make_schedule(10, verbose=False)
    noise, x0 = torch.randn(BATCH), torch.randn(BATCH)
    model.apply_model = lambda x, t, cond: noise  # a model that knows the noise must return x0 exactly
    x = sampler.stochastic_encode(x0, torch.tensor([299, 299]), use_original_steps=True, noise=noise)
    torch.testing.assert_close(
        sampler.decode(x, COND, 300, use_original_steps=True), x0, rtol=1e-3, atol=1e-3
    )


def test_stochastic_encode_reaches_the_level_of_the_index(model):
    sampler = DDIMSampler(model)
    sampler.make_schedule(10, verbose=False)
    x0, noise, index = torch.randn(BATCH), torch.randn(BATCH), torch.tensor([2, 7])
    expected = model.q_sample(x0, torch.tensor([201, 701]), noise)
    torch.testing.assert_close(sampler.stochastic_encode(x0, index, noise=noise), expected)
    torch.manual_seed(9)
    drawn = sampler.stochastic_encode(x0, index)
    torch.manual_seed(9)
    assert torch.equal(drawn, sampler.stochastic_encode(x0, index, noise=torch.randn_like(x0)))


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_decode_undoes_encode(parameterization):
    model = StandIn(parameterization)
    sampler = DDIMSampler(model)
    sampler.make_schedule(250, verbose=False)
    x0 = torch.randn(BATCH)
    up, _ = sampler.encode(x0, COND, 100, unconditional_guidance_scale=1.5, unconditional_conditioning=UNCOND)
    down = sampler.decode(up, COND, 100, 1.5, UNCOND)
    assert (up - x0).norm() / x0.norm() > 0.3  # it went somewhere
    assert (down - x0).norm() / x0.norm() < 0.02  # first-order steps of 4 timesteps


def test_encode_keeps_the_latents_it_is_asked_for(model):
    sampler = DDIMSampler(model)
    sampler.make_schedule(20, verbose=False)
    heard = []
    x, out = sampler.encode(torch.randn(BATCH), COND, 20, return_intermediates=4, callback=heard.append)
    assert out["intermediate_steps"] == [0, 5, 10, 15, 18, 19]
    assert len(out["intermediates"]) == 6
    assert torch.equal(out["intermediates"][-1], x)
    assert torch.equal(out["x_encoded"], x)
    assert heard == list(range(20))
    _, out = sampler.encode(torch.randn(BATCH), COND, 20)
    assert out["intermediate_steps"] == []


def test_more_encode_or_decode_steps_than_the_schedule_has_are_refused(model):
    sampler = DDIMSampler(model)
    sampler.make_schedule(20, verbose=False)
    for call in (sampler.encode, sampler.decode):
        with pytest.raises(ValueError, match="steps=21: ask for at least 1 and at most 20"):
            call(torch.randn(BATCH), COND, 21)


@pytest.mark.parametrize("steps", [0, 501, 5000])
def test_impossible_step_counts_are_refused(steps, model):
    with pytest.raises(ValueError, match=f"steps={steps}.*at most 500"):
        DDIMSampler(model).sample(steps, 2, SHAPE, COND)


@pytest.mark.parametrize("asked", [3, 9, 27, 36, 101, 251, 333])
def test_counts_that_crashed_in_the_original_now_run(asked, model):
    samples, _ = DDIMSampler(model).sample(asked, 2, SHAPE, COND)
    assert torch.isfinite(samples).all()
    assert max(int(t[0]) for t, _ in model.calls) < 1000


@pytest.mark.parametrize("option", ["score_corrector", "quantize_x0", "dynamic_threshold"])
def test_options_of_other_models_are_refused(option, model):
    with pytest.raises(NotImplementedError, match=f"{option} is not supported"):
        DDIMSampler(model).sample(5, 2, SHAPE, COND, **{option: 0.9})


def test_other_discretizations_are_refused(model):
    with pytest.raises(NotImplementedError, match="'quad': only 'uniform'"):
        DDIMSampler(model).make_schedule(5, ddim_discretize="quad")


@pytest.mark.parametrize("cond", [COND, [COND["c_crossattn"][0]], COND["c_crossattn"][0]])
def test_a_conditioning_of_another_batch_size_is_warned_of(cond, model, caplog):
    model.apply_model = lambda x, t, cond: torch.zeros_like(x)
    DDIMSampler(model).sample(5, 2, SHAPE, cond)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        DDIMSampler(model).sample(5, 3, SHAPE, cond)
    assert "got 2 conditionings for a batch of 3" in caplog.text


def test_device_is_the_models_and_else_that_of_its_betas(model):
    assert DDIMSampler(model).device == torch.device("cpu")
    model.device = "meta"
    assert DDIMSampler(model).device == torch.device("meta")
    del model.device
    assert DDIMSampler(model.to("meta")).device == torch.device("meta")


def test_sampling_keeps_no_gradients(model):
    x_T = torch.randn(BATCH, requires_grad=True)
    samples, _ = DDIMSampler(model).sample(5, 2, SHAPE, COND, x_T=x_T)
    assert not samples.requires_grad
