"""The lite branch: the interface of the full one, a twentieth of its weights, nothing per step but gains."""

import re

import pytest
import torch
from safetensors.torch import save_file

from cldm.lite import ControlLite
from cldm.model import BRANCHES, create_model, load_control, load_model, with_branch
from cldm.sampling import ControlUnit, combined_residuals
from ldm.config import create_meta_model
from tests.small_models import SD15, SD21, randomize, settings
from trainer.model import load_for_training

FAMILIES = pytest.mark.parametrize("unet", [SD15, SD21], ids=["SD15", "SD21"])
HINT = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
T = torch.tensor([20, 900])
TEXT = torch.randn(2, 5, SD15["context_dim"], generator=torch.Generator().manual_seed(3))
COND = {"c_crossattn": [TEXT], "c_concat": [HINT]}
BUDGET = 0.05  # of the full branch's weights


def lite_settings(unet=SD15, **lite):
    config = with_branch(settings(unet), "lite")
    config.model.params.control_stage_config.params.lite = lite
    return config


def build_lite(unet=SD15, **lite):
    """A model with a lite branch whose every weight is random, and so are all others."""
    torch.manual_seed(0)
    return randomize(create_model(lite_settings(unet, **lite)).eval())


@FAMILIES
@torch.no_grad()
def test_residuals_have_the_shapes_of_the_full_branch(unet):
    full, lite = create_model(settings(unet)).control_model, build_lite(unet).control_model
    expected = [residual.shape for residual in full(X, HINT, T, TEXT)]
    assert [residual.shape for residual in lite(X, HINT, T, TEXT)] == expected


@torch.no_grad()
def test_an_untrained_branch_changes_nothing_to_the_bit():
    torch.manual_seed(0)
    model = create_model(lite_settings()).eval()
    randomize(model.model)
    plain = model.apply_model(X, T, COND | {"c_concat": None})
    assert torch.equal(model.apply_model(X, T, COND), plain)


def test_only_the_branch_learns_and_all_of_it():
    model = build_lite()
    model.apply_model(X, T, COND).square().mean().backward()
    learned = {name for name, value in model.named_parameters() if value.grad is not None}
    assert learned == {name for name, _ in model.named_parameters() if name.startswith("control_model.")}


def test_zero_convolutions_learn_from_the_first_step():
    torch.manual_seed(0)
    model = create_model(lite_settings()).eval()
    randomize(model.model)
    model.apply_model(X, T, COND).square().mean().backward()
    assert all(conv.weight.grad.abs().max() > 0 for conv in model.control_model.zero_convs)


@pytest.mark.parametrize("timed", [False, True])
@torch.no_grad()
def test_a_step_costs_only_gains(timed):
    branch = build_lite(timed=timed).control_model
    features = branch.encode_hint(HINT)
    steps = [branch(X, features, T + shift, TEXT, encoded=True) for shift in (0, 50)]
    raw = branch(X, HINT, T, TEXT)
    assert all(torch.equal(a, b) for a, b in zip(raw, steps[0], strict=True))
    for feature, first, later in zip(features, *steps, strict=True):
        ratio = (first / feature).flatten(2)
        torch.testing.assert_close(ratio, ratio[:, :, :1].expand_as(ratio), rtol=1e-4, atol=1e-4)
        assert torch.equal(first, later) != timed


@torch.no_grad()
def test_one_hint_serves_a_batch_of_pictures():
    branch = build_lite().control_model
    features = branch.encode_hint(HINT[:1])
    one = ControlUnit(branch, features, (1.0,) * len(features))
    expected = branch(X, HINT[:1].expand(2, -1, -1, -1), T, TEXT)
    for got, wanted in zip(combined_residuals([one], X, T, TEXT), expected, strict=True):
        torch.testing.assert_close(got, wanted)


@torch.no_grad()
def test_without_kernel_and_way_up_every_position_sees_its_own_patch_alone():
    branch = build_lite(kernel=0, top_down=False).control_model
    changed = HINT.clone()
    changed[:, :, 8:16, 24:32] += 1  # the patch of latent position (1, 3)
    places = zip(branch.encode_hint(HINT), branch.encode_hint(changed), branch.places, strict=True)
    for before, after, (level, _) in places:
        differs = (before != after).any(dim=(0, 1)).nonzero().tolist()
        assert differs == [[1 >> level, 3 >> level]]


@torch.no_grad()
def test_with_kernel_and_way_up_a_patch_is_seen_far_away():
    branch = build_lite().control_model
    changed = HINT.clone()
    changed[:, :, :8, :8] += 1
    before, after = branch.encode_hint(HINT)[0], branch.encode_hint(changed)[0]
    assert (before != after)[:, :, -1, -1].any()


@pytest.mark.parametrize("config", ["models/cldm_v15.yaml", "models/cldm_v21.yaml"])
def test_it_has_at_most_a_twentieth_of_the_full_branchs_weights(config):
    lite = create_meta_model(with_branch(config, "lite")).control_model
    full = create_meta_model(config).control_model
    count = [sum(value.numel() for value in branch.parameters()) for branch in (lite, full)]
    assert count[0] <= BUDGET * count[1]


def test_half_precision_takes_any_hint():
    branch = build_lite().control_model.half()
    assert {residual.dtype for residual in branch.encode_hint(HINT)} == {torch.float16}


@pytest.mark.parametrize(
    ("lite", "sentence"),
    [
        ({"width": 0}, "give a width above 0"),
        ({"kernel": 4}, "an odd kernel"),
        ({"depth": 0}, "a depth of 1 or more"),
        ({"widht": 1}, "widht"),
    ],
)
def test_settings_that_make_no_branch_are_refused(lite, sentence):
    with pytest.raises(ValueError, match=sentence):
        create_meta_model(lite_settings(**lite))


def test_the_kind_of_branch_can_be_exchanged_and_back():
    full = settings()
    lite = with_branch(full, "lite")
    assert isinstance(create_meta_model(lite).control_model, ControlLite)
    assert with_branch(lite, "full") == full
    assert with_branch(lite, "lite") == lite


def test_an_unknown_kind_of_branch_lists_the_known_ones():
    with pytest.raises(ValueError, match=f"unknown branch 'xs': use {' or '.join(BRANCHES)}"):
        with_branch(settings(), "xs")


@pytest.mark.parametrize("kinds", [("full", "lite"), ("lite", "full")])
def test_a_file_of_the_other_kind_is_called_by_its_name(kinds, tmp_path):
    own, other = kinds
    model = create_model(with_branch(settings(), other))
    path = tmp_path / "control.safetensors"
    save_file({f"control_model.{k}": v for k, v in model.control_model.state_dict().items()}, path)
    sentence = f"{path} holds a {other} branch, the yaml describes a {own} one: take the other's yaml"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_model(with_branch(settings(), own), path)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_control(with_branch(settings(), own), path)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_for_training(with_branch(settings(), own), [path])
