"""Several branches: when they act, how strongly, and that they add up."""

import pytest
import torch

from cldm.request import Request
from cldm.sampling import ControlledDenoiser, ControlUnit, combined_residuals, control_scales
from tests.small_models import SD15, build

HINT = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
T = torch.tensor([500, 500])
TEXT = torch.randn(2, 5, SD15["context_dim"], generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model():
    return build().requires_grad_(False)


def unit(model, strength=1.0, **options):
    scales = control_scales(strength, len(model.control_scales), guess_mode=False)
    return ControlUnit(model.control_model, model.control_model.encode_hint(HINT), scales, **options)


def test_guess_mode_fades_by_0_825_a_block_towards_the_shallow_ones():
    scales = control_scales(2.0, 13, guess_mode=True)
    assert scales == pytest.approx([2.0 * 0.825 ** (12 - i) for i in range(13)])
    assert control_scales(0.7, 3, guess_mode=False) == (0.7, 0.7, 0.7)


@pytest.mark.parametrize(
    ("start", "end", "acting"),
    [(0, 1, [0, 1, 2, 3]), (0, 0.5, [0, 1]), (0.5, 1, [2, 3]), (0.25, 0.75, [1, 2]), (0, 0.2, [])],
)
def test_a_branch_acts_in_its_part_of_the_steps(start, end, acting):
    one = ControlUnit(torch.nn.Identity(), HINT, (), start, end)
    assert [step for step in range(4) if one.acts(step, 4)] == acting


def test_a_third_of_three_steps_is_one_step():
    one = ControlUnit(torch.nn.Identity(), HINT, (), 1 / 3, 2 / 3)
    assert [step for step in range(3) if one.acts(step, 3)] == [1]


def test_two_half_strength_branches_equal_one_whole(model):
    whole = combined_residuals([unit(model)], X, T, TEXT)
    halves = combined_residuals([unit(model, 0.25), unit(model, 0.75)], X, T, TEXT)
    for a, b in zip(whole, halves, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # one rounding more a sum


def test_no_branch_is_no_control(model):
    assert combined_residuals([], X, T, TEXT) is None


def test_pooled_residuals_are_the_same_everywhere(model):
    for residual in combined_residuals([unit(model, pool=True)], X, T, TEXT):
        assert residual.shape[2:] == (1, 1)


def test_the_denoiser_equals_apply_model_with_the_published_cond(model):
    denoise = ControlledDenoiser(model, TEXT, [unit(model, 0.5)], [1.0, 500.0], Request("x"))
    cond = {"c_crossattn": [TEXT], "c_concat": [HINT.expand(2, -1, -1, -1)]}
    scales = [0.5] * len(model.control_scales)
    expected = model.apply_model(X, T, cond, control_scales=scales)
    torch.testing.assert_close(denoise(X, T), expected, rtol=1e-5, atol=1e-5)


def test_outside_its_part_a_branch_changes_nothing_to_the_bit(model):
    late = [unit(model, start=0.5)]
    denoise = ControlledDenoiser(model, TEXT, late, [1.0, 250.6, 500.4, 999.0], Request("x"))
    plain = ControlledDenoiser(model, TEXT, [], [1.0, 250.6, 500.4, 999.0], Request("x"))
    for timestep, acts in [(999, False), (500, False), (251, True), (1, True)]:
        t = torch.full((2,), timestep)
        assert torch.equal(denoise(X, t), plain(X, t)) != acts


def test_residuals_are_kept_only_where_a_later_step_uses_them_again(model):
    for every, kept in ((1, 0), (2, 1)):
        request = Request("x", control_every=every)
        denoise = ControlledDenoiser(model, TEXT, [unit(model)], [1, 500], request)
        denoise(X, T)
        assert len(denoise._residuals) == kept
