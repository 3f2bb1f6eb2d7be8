"""Laws of latent diffusion: noising, what is predicted, the loss, and what a checkpoint may lack."""

import pytest
import torch
import torch.nn.functional as F

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.samplers import eps_from_v
from ldm.models.diffusion.schedule import schedule_buffers
from tests.small_models import SD15, TEXT, VAE, randomize, relative_error

PARTS = {
    "unet_config": {"target": "ldm.modules.unet.UNetModel", "params": SD15},
    "first_stage_config": {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {"embed_dim": 4, "ddconfig": VAE},
    },
    "cond_stage_config": {
        "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
        "params": {"config": TEXT},
    },
}
SCHEDULE = schedule_buffers(1000, 0.00085, 0.0120)
T = torch.tensor([1, 981])


def diffusion(**params):
    torch.manual_seed(0)
    return randomize(LatentDiffusion(**PARTS, **params)).eval()


@pytest.fixture(scope="module")
def shared():
    """One model for the tests that leave it as it is."""
    return diffusion()


def latents():
    torch.manual_seed(1)
    return torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)


def abar(t):
    return SCHEDULE["alphas_cumprod"].double()[t][:, None, None, None]


def text_cond():
    return {"c_crossattn": [torch.randn(2, 7, 32)], "c_concat": None}


def test_noising_follows_equation_4(shared):
    x0, noise = latents()
    expected = abar(T).sqrt() * x0.double() + (1 - abar(T)).sqrt() * noise.double()
    assert relative_error(shared.q_sample(x0, T, noise), expected) < 1e-6


def test_noising_draws_standard_noise_where_none_is_given(shared):
    x0, _ = latents()
    torch.manual_seed(4)
    drawn = shared.q_sample(x_start=x0, t=T)
    torch.manual_seed(4)
    assert torch.equal(drawn, shared.q_sample(x0, T, noise=torch.randn_like(x0)))


def test_velocity_and_noisy_latent_hold_both_latent_and_noise(shared):
    x0, noise = latents()
    x_t, v = shared.q_sample(x0, T, noise), shared.get_v(x0, noise, T)
    assert relative_error(v, abar(T).sqrt() * noise - (1 - abar(T)).sqrt() * x0) < 1e-6
    assert relative_error(eps_from_v(v, x_t, T, shared.alphas_cumprod), noise) < 1e-5


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_the_loss_is_the_mean_squared_error_of_what_is_predicted(parameterization):
    model = diffusion(parameterization=parameterization)
    x0, noise = latents()
    cond = text_cond()
    loss, logged = model.p_losses(x0, cond, T, noise)
    target = noise if parameterization == "eps" else model.get_v(x0, noise, T)
    expected = F.mse_loss(model.apply_model(model.q_sample(x0, T, noise), T, cond), target)
    torch.testing.assert_close(loss, expected)
    assert set(logged) == {"val/loss_simple", "val/loss"}
    assert set(model.train().p_losses(x0, cond, T, noise)[1]) == {"train/loss_simple", "train/loss"}
    assert not logged["val/loss"].requires_grad
    model.apply_model = lambda x, t, cond: target
    assert model.p_losses(x0, cond, T, noise)[0] == 0


def test_training_steps_draw_timesteps_over_the_whole_schedule(shared, monkeypatch):
    seen = []
    monkeypatch.setattr(shared, "p_losses", lambda x, cond, t: seen.append(t))
    torch.manual_seed(0)
    shared(torch.zeros(2000, 4, 1, 1), {})
    assert (seen[0].min(), seen[0].max()) == (0, 999)  # missing either has a chance of 13 %; seed 0 does not
    assert seen[0].dtype == torch.int64


@torch.no_grad()
def test_predicted_noise_is_the_answer_itself_or_read_from_the_velocity():
    x, _ = latents()
    cond = text_cond()
    model = diffusion()
    assert torch.equal(model.predict_eps(x, T, cond), model.apply_model(x, T, cond))
    model = diffusion(parameterization="v")
    expected = abar(T).sqrt() * model.apply_model(x, T, cond) + (1 - abar(T)).sqrt() * x
    assert relative_error(model.predict_eps(x, T, cond), expected) < 1e-6
    assert relative_error(model.predict_eps(x, T.float(), cond), expected) < 1e-4


@torch.no_grad()
def test_a_velocity_between_two_timesteps_is_read_with_the_level_between_them():
    model = diffusion(parameterization="v")
    x, v = latents()
    model.apply_model = lambda x, t, cond: v
    below, between, above = (
        model.predict_eps(x, torch.full((2,), t), text_cond()) for t in (500.0, 500.5, 501.0)
    )
    assert relative_error(between, (below + above) / 2) < 1e-5
    assert relative_error(between, below) > 1e-4


@torch.no_grad()
def test_latents_are_scaled_on_the_way_in_and_out(shared):
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    posterior = shared.encode_first_stage(pixels)
    latent = shared.get_first_stage_encoding(posterior.mode())
    assert torch.equal(latent, 0.18215 * posterior.mode())
    assert (
        relative_error(shared.decode_first_stage(latent), shared.first_stage_model.decode(posterior.mode()))
        < 1e-4
    )
    drawn = shared.get_first_stage_encoding(posterior, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, 0.18215 * posterior.sample(torch.Generator().manual_seed(0)))


def test_a_batch_becomes_latents_and_text_without_gradients(shared):
    batch = {"jpg": torch.rand(2, 32, 48, 3) * 2 - 1, "txt": ["a red circle", ""]}
    torch.manual_seed(0)
    latent, text = shared.get_input(batch, "jpg")
    torch.manual_seed(0)
    pixels = batch["jpg"].permute(0, 3, 1, 2)
    expected = shared.get_first_stage_encoding(shared.encode_first_stage(pixels))
    assert relative_error(latent, expected) < 1e-6
    assert torch.equal(text, shared.get_learned_conditioning(batch["txt"]))
    assert not latent.requires_grad
    assert not text.requires_grad


def test_no_prompt_is_the_empty_prompt(shared):
    empty = shared.get_unconditional_conditioning(2)
    assert torch.equal(empty, shared.get_learned_conditioning(["", ""]))


def test_the_autoencoder_never_learns(shared):
    assert not any(parameter.requires_grad for parameter in shared.first_stage_model.parameters())


@pytest.mark.parametrize("absent", [["logvar"], list(SCHEDULE), ["logvar", *SCHEDULE], ["betas"]], ids=len)
def test_what_the_settings_decide_may_be_absent_from_a_strict_load(shared, absent):
    source, target = shared, LatentDiffusion(**PARTS)
    state = {name: tensor for name, tensor in source.state_dict().items() if name not in absent}
    before = dict(state)
    target.load_state_dict(state, strict=True)
    assert list(state) == list(before)  # the caller's dict is not filled up
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in target.state_dict().items())


def test_a_stored_schedule_is_taken_and_a_missing_weight_refused():
    model = diffusion()
    state = model.state_dict() | {"betas": torch.full((1000,), 0.5)}
    model.load_state_dict(state, strict=True)
    assert torch.equal(model.betas, torch.full((1000,), 0.5))
    del state["model.diffusion_model.out.2.bias"]
    with pytest.raises(RuntimeError, match="out.2.bias"):
        model.load_state_dict(state, strict=True)


@pytest.mark.parametrize("move", ["half", "bfloat16", "to", "double"])
def test_the_schedule_stays_exact_whatever_the_weights_become(move):
    model = diffusion()
    model = model.to(torch.float16) if move == "to" else getattr(model, move)()
    assert next(model.model.parameters()).dtype != torch.float32
    for name, buffer in SCHEDULE.items():
        assert torch.equal(getattr(model, name), buffer)
    assert model.state_dict()["alphas_cumprod"].dtype == torch.float32


@torch.no_grad()
def test_half_precision_weights_train_and_sample_near_float32():
    exact, x0, noise, cond = diffusion(), *latents(), text_cond()
    half = diffusion().bfloat16()
    loss = half.p_losses(x0.bfloat16(), cond, T, noise.bfloat16())[0]
    assert loss.dtype == torch.float32
    assert relative_error(loss, exact.p_losses(x0, cond, T, noise)[0]) < 0.05
    assert half.q_sample(x0.bfloat16(), T).dtype == torch.bfloat16
    assert half.get_v(x0.bfloat16(), noise.bfloat16(), T).dtype == torch.bfloat16
    assert half.get_input({"jpg": torch.zeros(1, 32, 32, 3), "txt": ["a"]}, "jpg")[0].isfinite().all()


def test_the_device_is_where_the_schedule_is(shared):
    assert shared.device == shared.betas.device == torch.device("cpu")
    with torch.device("meta"):
        assert LatentDiffusion(**PARTS).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"parameterization": "x0"}, "unknown parameterization 'x0': use eps, v"),
        ({"timestep": 10}, "the diffusion model does not know timestep; it takes .*timesteps"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(params, message):
    with pytest.raises(ValueError, match=message):
        LatentDiffusion(**PARTS, **params)


def test_published_settings_of_trainers_are_accepted():
    model = diffusion(num_timesteps_cond=1, log_every_t=200, cond_stage_trainable=False, use_ema=False)
    assert (model.num_timesteps, model.scale_factor) == (1000, 0.18215)
