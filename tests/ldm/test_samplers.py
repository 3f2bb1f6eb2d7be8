import pytest
import torch

from ldm.models.diffusion import samplers
from ldm.models.diffusion.samplers import (
    SAMPLERS,
    classifier_free_guidance,
    inpaint_blend,
    sample,
    start_latent,
)  # fmt: skip
from ldm.models.diffusion.sampling_run import noise_sampler
from ldm.models.diffusion.schedule import schedule_buffers, sigma_levels

# diffusers hands tensors to numpy in a way that numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ABAR = schedule_buffers(1000, 0.00085, 0.0120)["alphas_cumprod"]
SHAPE = (2, 4, 8, 8)
SD15 = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
PARITY = 1e-4  # relative, as asked; diffusers keeps its sigmas in float32
NOISY = {"ddim": 1.0, "euler_ancestral": 0.0}  # the samplers that draw, with the eta at which they do


def denoise(x, t):
    """Noise in x when the data are two Gaussians at +-1 (so nonlinear in x), per pixel."""
    abar = torch.from_numpy(ABAR.numpy())[t.long()] if not t.is_floating_point() else _between(t)
    abar = abar[:, None, None, None].to(x)
    spread = 0.25 * abar + 1 - abar  # variance of each noised Gaussian: deviation 0.5 before
    centre = abar.sqrt() * torch.tanh(x * abar.sqrt() / spread)
    return (1 - abar).sqrt() * (x - centre) / spread


def _between(t):
    low = t.floor().long().clamp(max=998)
    return torch.lerp(ABAR[low], ABAR[low + 1], t - low)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def x_T(rng):
    return torch.randn(SHAPE, generator=rng)


def scheduler_of(name):
    diffusers = pytest.importorskip("diffusers")
    multistep = {"solver_order": 2, "algorithm_type": "dpmsolver++"}
    return {
        "ddim": lambda: diffusers.DDIMScheduler(
            **SD15, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
        ),
        "euler": lambda: diffusers.EulerDiscreteScheduler(**SD15),
        "euler_ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(**SD15),
        "heun": lambda: diffusers.HeunDiscreteScheduler(**SD15),
        "dpmpp_2m": lambda: diffusers.DPMSolverMultistepScheduler(**SD15, **multistep),
        "dpmpp_2m_karras": lambda: diffusers.DPMSolverMultistepScheduler(
            **SD15, **multistep, use_karras_sigmas=True
        ),
        "unipc": lambda: diffusers.UniPCMultistepScheduler(**SD15),
    }[name]()


def walk_of_diffusers(scheduler, x_T, *, model=denoise, begin=0, **step_options):
    """The scheduler's own walk from the same variance-preserving x_T; `begin` steps are skipped."""
    timesteps = scheduler.timesteps[begin * scheduler.order :]
    scheduler.set_begin_index(begin * scheduler.order) if hasattr(scheduler, "set_begin_index") else None
    sigma_scale = "Euler" in type(scheduler).__name__ or "Heun" in type(scheduler).__name__
    x = x_T * (1 + scheduler.sigmas[begin * scheduler.order] ** 2) ** 0.5 if sigma_scale else x_T
    for t in timesteps:
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(model(seen, t.expand(len(x))), t, x, **step_options).prev_sample
    return x


def distance(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_walks_as_the_diffusers_scheduler_of_its_name(name, steps, x_T):
    scheduler = scheduler_of(name)
    scheduler.set_timesteps(steps)
    options = {"eta": 1.0} if name == "ddim" else {}
    draws = {"generator": torch.Generator().manual_seed(1)} if name in NOISY else {}
    theirs = walk_of_diffusers(scheduler, x_T, **draws, **options)
    ours = sample(name, denoise, x_T, steps, ABAR, generator=torch.Generator().manual_seed(1), **options)
    assert distance(ours, theirs) < PARITY


@pytest.mark.parametrize("name", SAMPLERS)
def test_img2img_start_walks_as_diffusers_does(name, x_T, rng):
    steps, start, x0 = 20, 0.4, torch.randn(SHAPE, generator=rng)
    scheduler = scheduler_of(name)
    scheduler.set_timesteps(steps)
    draws = {"generator": torch.Generator().manual_seed(1)} if name in NOISY else {}
    noised = start_latent(x0, x_T, SAMPLERS[name].timesteps(steps, ABAR, start), ABAR)
    theirs = walk_of_diffusers(scheduler, noised, begin=12, **draws)
    generator = torch.Generator().manual_seed(1)
    ours = sample(name, denoise, noised, steps, ABAR, start=start, generator=generator)
    assert distance(ours, theirs) < PARITY


@pytest.mark.parametrize("name", SAMPLERS)
def test_start_latent_holds_the_noise_of_the_first_visited_timestep(name, x_T):
    seen = []
    x0 = torch.zeros(SHAPE)
    noised = start_latent(x0, x_T, SAMPLERS[name].timesteps(10, ABAR, 0.5), ABAR)
    sample(name, lambda x, t: seen.append((x, t)) or denoise(x, t), noised, 10, ABAR, start=0.5)
    x, t = seen[0]
    expected = (1 - (_between(t) if t.is_floating_point() else ABAR[t])).sqrt()
    rounding = 1e-2  # Karras levels lie between two timesteps, the model is told the nearer one
    torch.testing.assert_close(x.std() / x_T.std(), expected[0], rtol=rounding, atol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_many_steps_reach_the_data_from_noise(name, rng):
    x_T = torch.randn(8, 4, 8, 8, generator=rng)
    x0 = sample(name, denoise, x_T, 50, ABAR, generator=rng, eta=NOISY.get(name, 0.0))
    # two Gaussians at +-1 with deviation 0.5: mean 0, variance 1.25; 2048 samples, so about 3 % of it
    assert x0.mean().abs() < 0.15
    assert abs(x0.var().item() - 1.25) < 0.15


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "euler_ancestral"])
def test_solvers_without_noise_agree_on_the_same_ode(name, x_T):
    exact = sample("heun", denoise, x_T, 400, ABAR)
    assert distance(sample(name, denoise, x_T, 100, ABAR), exact) < 0.02


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_are_reported_in_order_with_shapes_and_prediction(name, x_T):
    steps = []
    x0 = sample(name, denoise, x_T, 5, ABAR, on_step=steps.append)
    assert [s.index for s in steps] == list(range(5))
    assert {s.total for s in steps} == {5}
    assert all(s.x.shape == s.x0.shape == SHAPE for s in steps)
    times = [s.t for s in steps]
    assert times == sorted(times, reverse=True)
    assert torch.equal(steps[-1].x, x0)
    t = torch.full((2,), times[0])
    signal, level = samplers._scales(t, ABAR, x_T)
    first = (x_T - level * denoise(x_T, t)) / signal
    torch.testing.assert_close(steps[0].x0, first, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_same_generator_seed_gives_the_same_bytes_and_leaves_the_global_one_alone(name, x_T):
    before = torch.get_rng_state()
    runs = [
        sample(name, denoise, x_T, 5, ABAR, eta=1.0, generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    ]
    assert torch.equal(*runs)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_draws_one_randn_per_step_even_without_noise(eta, x_T):
    ours, counted = (torch.Generator().manual_seed(3) for _ in range(2))
    sample("ddim", denoise, x_T, 5, ABAR, eta=eta, generator=ours)
    for _ in range(5):
        torch.randn(SHAPE, generator=counted)
    assert torch.equal(ours.get_state(), counted.get_state())


def test_noise_is_drawn_on_the_generators_device_and_moved_to_the_latents():
    ours, counted = (torch.Generator().manual_seed(3) for _ in range(2))
    noise = noise_sampler(torch.empty(SHAPE, dtype=torch.bfloat16, device="meta"), ours)()
    torch.randn(SHAPE, generator=counted)
    assert torch.equal(ours.get_state(), counted.get_state())
    assert (noise.device.type, noise.dtype) == ("meta", torch.bfloat16)


@pytest.mark.parametrize("name", SAMPLERS)
def test_inputs_are_not_changed(name, x_T):
    before = x_T.clone()
    sample(name, denoise, x_T, 5, ABAR, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x_T, before)


@pytest.mark.parametrize("name", SAMPLERS)
def test_known_part_returns_and_the_rest_is_sampled(name, x_T, rng):
    known, mask = torch.full(SHAPE, 0.7), torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1
    blend = inpaint_blend(known, mask, ABAR, rng)
    free = sample(name, denoise, x_T, 20, ABAR, generator=torch.Generator().manual_seed(0))
    kept = sample(name, denoise, x_T, 20, ABAR, generator=torch.Generator().manual_seed(0), blend=blend)
    last_noise = sigma_levels(SAMPLERS[name].timesteps(20, ABAR)[:1], ABAR)[0]
    assert (
        kept[..., :4] - 0.7
    ).abs().mean() < last_noise + 0.01  # the last step only guesses below its level
    # The denoiser is pixelwise: the other half must not notice.
    if name not in NOISY:
        torch.testing.assert_close(kept[..., 4:], free[..., 4:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t", [torch.tensor([1, 900]), torch.tensor([20.5, 900.25])])
def test_known_part_is_noised_freshly_to_the_level_of_the_call(t, x_T):
    known, mask = torch.full(SHAPE, 0.7), torch.ones(2, 1, 8, 8)
    blend = inpaint_blend(known, mask, ABAR, torch.Generator().manual_seed(2))
    draws = torch.Generator().manual_seed(2)
    for _ in range(2):
        noise = torch.randn(SHAPE, generator=draws)
        assert torch.equal(blend(x_T, t), samplers.add_noise(known, noise, t, ABAR))


def test_blend_sees_every_latent_that_the_model_sees(x_T):
    for name in SAMPLERS:
        blended, seen = [], []

        def blend(x, t, blended=blended):
            blended.append(x + 1e-3)
            return blended[-1]

        def spy(x, t, seen=seen):
            seen.append(x)
            return denoise(x, t)

        sample(name, spy, x_T, 3, ABAR, blend=blend)
        assert len(seen) == (5 if name == "heun" else 3)
        assert all(a is b for a, b in zip(blended, seen, strict=True))


@pytest.mark.parametrize("name", SAMPLERS)
def test_half_precision_latents_stay_finite_and_half(name, x_T):
    half = sample(name, denoise, x_T.bfloat16(), 10, ABAR, generator=torch.Generator().manual_seed(0))
    full = sample(name, denoise, x_T, 10, ABAR, generator=torch.Generator().manual_seed(0))
    assert half.dtype == torch.bfloat16
    assert distance(half.float(), full) < 0.1  # 8 bits of mantissa over 10 steps


def test_model_is_told_whole_timesteps_except_by_the_sigma_samplers(x_T):
    for name, sampler in SAMPLERS.items():
        kinds = set()
        sample(name, lambda x, t, kinds=kinds: kinds.add(t.dtype) or denoise(x, t), x_T, 7, ABAR)
        assert kinds == {torch.float32 if sampler.fractions else torch.int64}, name


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_guidance_walks_the_line_from_unconditional_to_conditional(scale, x_T):
    cond, uncond = (lambda x, t: x + 1), (lambda x, t: x - 1)
    out = classifier_free_guidance(cond, uncond, scale)(x_T, torch.zeros(2))
    torch.testing.assert_close(out, x_T - 1 + 2 * scale, rtol=1e-5, atol=1e-5)


def test_guidance_at_scale_one_runs_only_the_conditional_model(x_T):
    def never(x, t):
        raise AssertionError("the unconditional model ran")

    assert classifier_free_guidance(denoise, never, 1.0) is denoise
    assert classifier_free_guidance(denoise, None, 9.0) is denoise


@pytest.mark.parametrize("t", [torch.tensor([1, 900]), torch.tensor([0.5, 998.75])])
def test_a_velocity_names_the_noise_it_is_made_of(t, x_T, rng):
    x0 = torch.randn(SHAPE, generator=rng)
    noise = torch.randn(SHAPE, generator=rng)
    x = samplers.add_noise(x0, noise, t, ABAR)
    signal, level = samplers._scales(t, ABAR, x)
    v = signal * noise - level * x0
    torch.testing.assert_close(samplers.eps_from_v(v, x, t, ABAR), noise, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m"])
def test_v_prediction_walks_as_in_diffusers(name, x_T):
    def velocity(x, t):
        eps = denoise(x, t)
        signal, level = samplers._scales(t, ABAR, x)
        return (eps - level * x) / signal  # from eps = signal v + level x

    scheduler = scheduler_of(name)
    scheduler.register_to_config(prediction_type="v_prediction")
    scheduler.set_timesteps(20)
    theirs = walk_of_diffusers(scheduler, x_T, model=velocity)
    ours = sample(name, lambda x, t: samplers.eps_from_v(velocity(x, t), x, t, ABAR), x_T, 20, ABAR)
    assert distance(ours, theirs) < PARITY


def test_start_counts_steps_without_rounding_traps():
    assert len(SAMPLERS["ddim"].timesteps(100, ABAR, start=0.29)) == 29
    assert len(SAMPLERS["euler"].timesteps(20, ABAR, start=0.001)) == 1
    full, part = (SAMPLERS["unipc"].timesteps(20, ABAR, start=s) for s in (1.0, 0.5))
    assert part == full[:10]


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_begins_at_the_noisiest_level_it_has(name, x_T):
    levels = SAMPLERS[name].timesteps(1, ABAR)
    highest = 1 if name == "ddim" else 999  # ddim: the published stride of 1000 leaves timestep 1
    assert levels == pytest.approx([highest])
    assert torch.isfinite(sample(name, denoise, x_T, 1, ABAR)).all()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [0, 501, 5000])
def test_impossible_step_counts_are_refused_in_one_sentence(name, steps, x_T):
    with pytest.raises(ValueError, match=f"steps={steps}: ask for at least 1 and at most 500"):
        sample(name, denoise, x_T, steps, ABAR)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_largest_step_count_walks_distinct_falling_levels(name):
    levels = SAMPLERS[name].timesteps(500, ABAR)
    assert len(levels) == 500
    assert all(a < b for a, b in zip(levels, levels[1:], strict=False))
    assert 0 <= levels[0] <= levels[-1] <= 999


def test_unknown_sampler_lists_the_known_ones(x_T):
    with pytest.raises(ValueError, match="unknown sampler 'plms'.*ddim, euler, .*unipc"):
        sample("plms", denoise, x_T, 5, ABAR)


@pytest.mark.parametrize("start", [0.0, -0.1, 1.5])
def test_start_outside_its_range_is_refused(start, x_T):
    with pytest.raises(ValueError, match=f"start={start}: allowed is more than 0.*up to 1"):
        sample("ddim", denoise, x_T, 5, ABAR, start=start)


@pytest.mark.parametrize("eta", [-0.5, 1.5])
def test_eta_outside_its_range_is_refused(eta, x_T):
    with pytest.raises(ValueError, match=f"eta={eta}: DDIM takes 0.*to 1"):
        sample("ddim", denoise, x_T, 5, ABAR, eta=eta)
