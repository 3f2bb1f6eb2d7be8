"""Laws of ControlNet: zero convolutions, who learns, and how residuals reach the U-Net."""

import pytest
import torch
from torch import nn

from cldm.cldm import ControlLDM, ControlNet, scale_residuals
from cldm.model import create_model
from tests.small_models import SD15, SD21, build, randomize, relative_error, settings

FAMILIES = pytest.mark.parametrize("family", [SD15, SD21], ids=["sd15", "sd21"])
FP32 = 1e-5  # relative, where the same sum is taken in another order
RESIDUALS = 10  # three levels of two blocks, two downsamplings, the first convolution, the middle
T = torch.tensor([3, 741])


def latent():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def condition(control=True):
    noise = torch.Generator().manual_seed(2)
    hint, text = torch.rand(2, 3, 64, 64, generator=noise), torch.randn(2, 7, 32, generator=noise)
    return {"c_concat": [hint] if control else None, "c_crossattn": [text]}


@pytest.fixture(scope="module")
def trained():
    """A model with random weights everywhere, for the tests that leave it as it is."""
    return build()


def untrained(family=SD15, seed=0, **params):
    """A trained base model and a fresh branch: the encoder's weights, and zero convolutions."""
    model = build(family, seed, **params)
    branch = ControlNet(**family)
    state = model.model.diffusion_model.state_dict()
    branch.load_state_dict(branch.state_dict() | {k: v for k, v in state.items() if k in branch.state_dict()})
    model.control_model.load_state_dict(branch.state_dict())
    return model


def loss_of(model):
    torch.manual_seed(0)
    return model.p_losses(latent(), condition(), T)[0]


def zero_convolutions(branch):
    return [*branch.zero_convs.parameters(), *branch.middle_block_out.parameters()]


@FAMILIES
@torch.no_grad()
def test_zero_initialised_control_changes_nothing_to_the_bit(family):
    model = untrained(family)
    with_control = model.apply_model(latent(), T, condition())
    assert torch.equal(with_control, model.apply_model(latent(), T, condition(control=False)))
    randomize(model.control_model)
    assert relative_error(model.apply_model(latent(), T, condition()), with_control) > 0.01


@FAMILIES
def test_zero_convolutions_learn_though_they_put_out_zero(family):
    model = untrained(family)
    residuals = model.control_model(latent(), condition()["c_concat"][0], T, condition()["c_crossattn"][0])
    assert not any(residual.any() for residual in residuals)
    loss_of(model).backward()
    assert all(parameter.grad.any() for parameter in zero_convolutions(model.control_model))


def test_at_first_only_the_zero_convolutions_learn_and_after_one_step_the_whole_branch():
    model = untrained()
    branch, last_of_hint = model.control_model, model.control_model.input_hint_block[-1]
    outer = {id(parameter) for parameter in zero_convolutions(branch)}
    loss_of(model).backward()
    assert all(p.grad.any() == (id(p) in outer) for p in branch.parameters())
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter -= 0.1 * parameter.grad
    branch.zero_grad()
    loss_of(model).backward()
    hint_block = {id(p) for p in branch.input_hint_block.parameters()} - {
        id(p) for p in last_of_hint.parameters()
    }
    # The hint block stands behind a zero convolution of its own: its inner layers wait one step more.
    assert all(p.grad.any() == (id(p) not in hint_block) for p in branch.parameters())


@FAMILIES
@pytest.mark.parametrize("locked", [True, False])
def test_only_the_branch_learns_when_sd_is_locked_and_else_the_output_half_too(family, locked):
    model = build(family, sd_locked=locked)
    loss_of(model).backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    unet = "model.diffusion_model."
    expected = ("control_model.",) if locked else ("control_model.", unet + "output_blocks.", unet + "out.")
    assert learned == {name for name, _ in model.named_parameters() if name.startswith(expected)}
    assert {id(p) for p in model.trainable_parameters()} == {
        id(p) for name, p in model.named_parameters() if name in learned
    }


def test_scripts_may_unlock_sd_after_building():
    model = create_model(settings())
    assert model.sd_locked
    decoder = model.model.diffusion_model.output_blocks
    for locked in (False, True):
        model.sd_locked = locked
        assert {p.requires_grad for p in decoder.parameters()} == {not locked}
    assert not any(p.requires_grad for p in model.model.diffusion_model.input_blocks.parameters())


def test_recomputing_activations_changes_neither_the_loss_nor_gradients():
    kept, recomputing = build(sd_locked=False), build(SD15 | {"use_checkpoint": True}, sd_locked=False)
    losses = [loss_of(model) for model in (kept, recomputing)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for a, b in zip(kept.trainable_parameters(), recomputing.trainable_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@torch.no_grad()
def test_one_residual_for_each_skip_and_one_for_the_middle(trained):
    residuals = trained.control_model(latent(), *condition()["c_concat"], T, *condition()["c_crossattn"])
    assert len(residuals) == len(trained.control_scales) == RESIDUALS
    _, skips = trained.model.diffusion_model.encode(
        latent(), trained.model.diffusion_model.embed(T), condition()["c_crossattn"][0]
    )
    assert [r.shape for r in residuals] == [*(s.shape for s in skips), skips[-1].shape]


@torch.no_grad()
def test_residuals_are_added_to_the_skips_and_the_last_to_the_middle(trained):
    unet, text = trained.model.diffusion_model, condition()["c_crossattn"][0]
    residuals = trained.control_model(latent(), *condition()["c_concat"], T, text)
    emb = unet.embed(T)
    h, skips = unet.encode(latent(), emb, text)
    skips = [(skip + residual, None) for skip, residual in zip(skips, residuals[:-1], strict=True)]
    expected = unet.decode(h + residuals[-1], skips, emb, text)
    assert torch.equal(trained.apply_model(latent(), T, condition()), expected)


@torch.no_grad()
def test_only_mid_control_uses_the_last_residual_alone(trained):
    unet, text = trained.model.diffusion_model, condition()["c_crossattn"][0]
    residuals = trained.control_model(latent(), *condition()["c_concat"], T, text)
    silenced = [*(torch.zeros_like(r) for r in residuals[:-1]), residuals[-1]]
    middle_only = unet(latent(), T, text, control=residuals, only_mid_control=True)
    assert torch.equal(middle_only, unet(latent(), T, text, control=silenced))
    assert torch.equal(build(only_mid_control=True).apply_model(latent(), T, condition()), middle_only)


@torch.no_grad()
def test_global_average_pooling_leaves_what_a_control_is_made_of_but_not_where(trained):
    residuals = trained.control_model(latent(), *condition()["c_concat"], T, *condition()["c_crossattn"])
    pooled = scale_residuals(residuals, [1.0] * RESIDUALS, pool=True)
    assert [p.shape for p in pooled] == [(*r.shape[:2], 1, 1) for r in residuals]
    for mean, residual in zip(pooled, residuals, strict=True):
        torch.testing.assert_close(mean[:, :, 0, 0], residual.flatten(2).mean(2))
    everywhere = [mean.expand_as(residual) for mean, residual in zip(pooled, residuals, strict=True)]
    expected = trained.apply_model(latent(), T, condition() | {"control": everywhere})
    pooling = build(global_average_pooling=True)
    assert relative_error(pooling.apply_model(latent(), T, condition()), expected) < FP32


@pytest.mark.parametrize("pool", [False, True])
def test_scaling_is_linear_and_each_residual_has_its_own_factor(pool):
    residuals = [torch.randn(1, 2, 3, 3) for _ in range(3)]
    one = scale_residuals(residuals, [1.0, 1.0, 1.0], pool=pool)
    mixed = scale_residuals(residuals, [0.5, 0.0, 3.0], pool=pool)
    for factor, whole, scaled in zip([0.5, 0.0, 3.0], one, mixed, strict=True):
        torch.testing.assert_close(scaled, factor * whole)


@torch.no_grad()
def test_the_models_control_scales_are_only_a_default(trained):
    x, cond = latent(), condition()
    scales = [0.825 ** (RESIDUALS - 1 - i) for i in range(RESIDUALS)]
    asked = trained.apply_model(x, T, cond, control_scales=scales)
    assert trained.control_scales == [1.0] * RESIDUALS
    as_published = build()
    as_published.control_scales = scales
    assert torch.equal(as_published.apply_model(x, T, cond), asked)
    assert torch.equal(
        as_published.apply_model(x, T, cond, [1.0] * RESIDUALS), trained.apply_model(x, T, cond)
    )
    assert not torch.equal(asked, trained.apply_model(x, T, cond))


@torch.no_grad()
def test_control_of_strength_zero_is_no_control(trained):
    silent = trained.apply_model(latent(), T, condition(), control_scales=[0.0] * RESIDUALS)
    assert torch.equal(silent, trained.apply_model(latent(), T, condition(control=False)))


def test_a_wrong_number_of_scales_is_refused(trained):
    with pytest.raises(ValueError, match="13 control scales for 10 residuals: give one for each"):
        trained.apply_model(latent(), T, condition(), control_scales=[1.0] * 13)


@FAMILIES
@torch.no_grad()
def test_an_encoded_hint_equals_the_hint_itself(family):
    branch, (hint,), (text,) = build(family).control_model, *condition().values()
    features = branch.encode_hint(hint)
    assert features.shape == (2, 32, 8, 8)
    raw, encoded = branch(latent(), hint, T, text), branch(latent(), features, T, text, encoded=True)
    assert all(torch.equal(a, b) for a, b in zip(raw, encoded, strict=True))


@torch.no_grad()
def test_an_untrained_hint_block_lets_the_picture_through():
    torch.manual_seed(0)
    *layers, last = create_model(settings()).control_model.input_hint_block
    picture = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features = torch.nn.Sequential(*layers)(picture)
    assert not last.weight.any()
    assert features.std(dim=0).mean() > 0.02 * picture.std(dim=0).mean()  # torch's default: about 0.0001


@torch.no_grad()
def test_ready_residuals_are_used_as_they_are(trained):
    residuals = trained.control_model(latent(), *condition()["c_concat"], T, *condition()["c_crossattn"])
    ready = condition(control=False) | {"control": residuals}
    expected = trained.apply_model(latent(), T, condition())
    assert torch.equal(trained.apply_model(latent(), T, ready), expected)


@torch.no_grad()
def test_several_texts_are_read_one_behind_the_other(trained):
    text = condition()["c_crossattn"][0]
    split = condition() | {"c_crossattn": [text[:, :3], text[:, 3:]]}
    assert torch.equal(trained.apply_model(latent(), T, split), trained.apply_model(latent(), T, condition()))


def test_the_branch_has_the_encoders_names_and_shapes_besides_its_own(trained):
    branch, unet = trained.control_model.state_dict(), trained.model.diffusion_model.state_dict()
    shared = {name for name in branch if name in unet}
    own = set(branch) - shared
    assert all(branch[name].shape == unet[name].shape for name in shared)
    assert all(name.startswith(("zero_convs.", "middle_block_out.", "input_hint_block.")) for name in own)
    assert set(unet) - shared == {name for name in unet if name.startswith(("output_blocks.", "out."))}


def test_a_batch_becomes_latents_texts_and_control_maps(trained):
    batch = {"jpg": torch.rand(3, 64, 32, 3), "txt": ["a", "b", "c"], "hint": torch.rand(3, 64, 32, 3)}
    torch.manual_seed(0)
    x, cond = trained.get_input(batch, "jpg", bs=2)
    assert x.shape == (2, 4, 8, 4)
    assert torch.equal(cond["c_concat"][0], batch["hint"][:2].permute(0, 3, 1, 2))
    assert torch.equal(cond["c_crossattn"][0], trained.get_learned_conditioning(["a", "b"]))
    torch.manual_seed(0)
    first = {name: values[:2] for name, values in batch.items()}
    assert torch.equal(x, trained.get_input(first, "jpg")[0])  # what is cut off draws no noise


@FAMILIES
@torch.no_grad()
def test_half_precision_takes_float32_latents_hints_and_text(family):
    model = build(family)
    exact = model.apply_model(latent(), T, condition())
    out = model.bfloat16().apply_model(latent(), T, condition())
    assert out.dtype == torch.float32
    assert relative_error(out, exact) < 0.1  # eight bits of mantissa through some dozen layers


@torch.no_grad()
@pytest.mark.parametrize("half", ["control_model", "model"])
def test_branch_and_unet_may_differ_in_precision(half):
    model = build()
    exact = model.apply_model(latent(), T, condition())
    getattr(model, half).bfloat16()
    assert 0 < relative_error(model.apply_model(latent(), T, condition()), exact) < 0.1


def test_autocast_trains_near_float32():
    model = build()
    exact = loss_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model)
    assert relative_error(loss, exact) < 0.05
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.trainable_parameters())


@pytest.mark.parametrize("is_diffusing", [True, False])
def test_low_vram_shift_brings_what_comes_next_after_the_rest_has_left(monkeypatch, is_diffusing):
    model, moved = build(), []
    names = {id(module): name for name, module in model.named_children()}
    monkeypatch.setattr(ControlLDM, "device", torch.device("cuda:1"))
    monkeypatch.setattr(nn.Module, "to", lambda self, device: moved.append((names[id(self)], str(device))))
    model.low_vram_shift(is_diffusing=is_diffusing)
    diffusing, rest = {"model", "control_model"}, {"first_stage_model", "cond_stage_model"}
    stays, leaves = (diffusing, rest) if is_diffusing else (rest, diffusing)
    assert {name for name, place in moved[:2] if place == "cpu"} == leaves
    assert {name for name, place in moved[2:] if place == "cuda:1"} == stays


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_models_device_stays_the_card_while_its_parts_move():
    model = build().cuda()
    for is_diffusing in (False, True, False):
        model.low_vram_shift(is_diffusing=is_diffusing)
        assert model.device.type == "cuda"
        places = [next(m.parameters()).is_cuda for m in (model.model, model.control_model)]
        assert places == [is_diffusing] * 2
        places = [next(m.parameters()).is_cuda for m in (model.first_stage_model, model.cond_stage_model)]
        assert places == [not is_diffusing] * 2
