"""A guided batch is computed once until its texts tell its halves apart, and nobody can tell."""

import pytest
import torch

from cldm.sampling import ControlUnit, combined_residuals, control_scales
from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.feature_cache import CACHE_POINTS
from tests.small_models import SD15, SD21, build, relative_error

FP32 = 1e-6  # relative: libraries may sum another number of rows in another order
FAMILIES = {
    "SD 1.5": SD15,
    "SD 2.1": SD21,
    "text at the coarsest level": SD15 | {"attention_resolutions": [4]},
    "text in the middle alone": SD15 | {"attention_resolutions": []},
}
PICTURES = 2


def guided(seed=0):
    """Latents, timesteps, control pictures and texts of two pictures, with and without prompts."""
    noise = torch.Generator().manual_seed(seed)
    x, hint = (
        torch.randn(PICTURES, 4, 8, 8, generator=noise),
        torch.rand(PICTURES, 3, 64, 64, generator=noise),
    )
    twice = torch.cat([x, x]), torch.tensor([3, 741, 3, 741]), torch.cat([hint, hint])
    return *twice, torch.randn(2 * PICTURES, 7, 32, generator=noise)


def condition(hint, text, **more):
    return {"c_concat": None if hint is None else [hint], "c_crossattn": [text], **more}


def both_ways(call):
    """What `call` answers when it may share rows, and when gradients are wanted and it may not."""
    with torch.no_grad():
        shared = call()
    with torch.enable_grad():
        return shared, call()


def watch_rows(model):
    """A list that fills with the rows that the first attentions see: to positions, to the text, and so on.

    A full branch comes before the U-Net.
    """
    seen = []
    for network in (model.model.diffusion_model, model.control_model):
        blocks = [module for module in network.modules() if isinstance(module, BasicTransformerBlock)]
        for attention in [part for block in blocks[:1] for part in (block.attn1, block.attn2)]:
            attention.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def model(family):
    return build(family).requires_grad_(False)


def test_a_controlled_step_is_that_of_rows_apart_and_costs_half_until_the_text(model):
    x, t, hint, text = guided()
    seen = watch_rows(model)
    shared, apart = both_ways(lambda: model.apply_model(x, t, condition(hint, text)))
    assert relative_error(shared, apart) < FP32
    assert seen == [PICTURES, 2 * PICTURES] * 2 + [2 * PICTURES] * 4


@pytest.mark.parametrize("place", range(3), ids=["latents", "timesteps", "hint"])
def test_halves_that_differ_share_nothing(model, place):
    given = list(guided())
    given[place] = given[place].clone()
    given[place].view(-1)[-1] += 1
    x, t, hint, text = given
    seen = watch_rows(model)
    shared, apart = both_ways(lambda: model.control_model(x, hint, t, text))
    assert seen == [2 * PICTURES] * 4
    assert all(torch.equal(a, b) for a, b in zip(shared, apart, strict=True))


def test_a_pass_without_control_beside_one_with_it(model):
    """Guess mode, both passes in one batch: the branch acts on the second half alone."""
    x, t, hint, text = guided()
    half = slice(PICTURES, None)
    with torch.no_grad():
        residuals = model.control_model(x[half], hint[half], t[half], text[half])
    control = [torch.cat([torch.zeros_like(one), one]) for one in residuals]
    seen = watch_rows(model)
    cond = condition(None, text, control=control)
    shared, apart = both_ways(lambda: model.apply_model(x, t, cond))
    assert seen[0] == PICTURES
    assert relative_error(shared, apart) < FP32


def test_several_branches_of_encoded_hints(model, family):
    x, t, hint, text = guided()
    scales = control_scales(0.7, len(model.control_scales), guess_mode=True)
    branches = model.control_model, build(family, seed=1).requires_grad_(False).control_model
    with torch.no_grad():
        units = [ControlUnit(branch, branch.encode_hint(hint[:1]), scales) for branch in branches]
    seen = watch_rows(model)
    shared, apart = both_ways(lambda: combined_residuals(units, x, t, text))
    assert seen == [PICTURES, 2 * PICTURES, 2 * PICTURES, 2 * PICTURES]
    for one, other in zip(shared, apart, strict=True):
        assert one.shape == other.shape
        assert relative_error(one, other) < FP32


@pytest.mark.parametrize("cut", CACHE_POINTS)
def test_what_is_kept_for_later_steps_has_all_rows(model, cut):
    x, t, hint, text = guided()

    def steps():
        cache = CACHE_POINTS[cut].make_cache(len(model.model.diffusion_model.input_blocks))
        cond = condition(hint, text, cache=cache)
        return torch.cat([model.apply_model(x * scale, t, cond) for scale in (1, 1.1)])

    shared, apart = both_ways(steps)
    assert relative_error(shared, apart) < FP32


def test_training_learns_from_every_row(family):
    """Rows that happen to be equal each get their own gradient."""
    model = build(family)
    x, t, hint, text = guided()
    x.requires_grad_()
    model.apply_model(x, t, condition(hint, text)).square().mean().backward()
    branch = model.control_model
    assert all(parameter.grad is not None for parameter in branch.parameters())
    assert x.grad.flatten(1).any(dim=1).all()
