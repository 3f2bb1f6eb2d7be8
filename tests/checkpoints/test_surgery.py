"""Surgery on state dicts: what is cut out, moved and left is exactly what the names say."""

from collections import Counter

import pytest
import torch

from checkpoints import surgery
from checkpoints.files.lazy import LazyTensor, MappedFile, read

UNET, CONTROL = "model.diffusion_model.", "control_model."
SHARED = ("time_embed.0.weight", "input_blocks.1.0.in_layers.2.weight")
OWN = ("zero_convs.0.0.weight", "input_hint_block.0.weight")


def draw(names, seed, shape=(3, 2)):
    noise = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=noise) for name in names}


def base(seed):
    names = [UNET + name for name in (*SHARED, "output_blocks.0.0.in_layers.0.weight")]
    return draw([*names, "first_stage_model.a.weight", "cond_stage_model.b.weight"], seed)


def control(seed):
    return draw([CONTROL + name for name in (*SHARED, *OWN)], seed)


def lazy(state):
    return MappedFile(state, lambda: state).lazy()


def assert_equal(got, expected):
    assert list(got) == list(expected)
    assert all(torch.equal(read(got[name]), expected[name]) for name in expected)


def test_the_control_branch_comes_out_of_a_full_file_untouched():
    assert_equal(surgery.extract_control(base(0) | control(1)), control(1))
    with pytest.raises(ValueError, match=r"no control branch inside: no name begins with control_model\."):
        surgery.extract_control(base(0))


def test_a_transfer_moves_by_what_the_bases_differ():
    old, new, branch = base(0), base(1), control(2)
    moved = surgery.transfer_control(branch, old, new)
    assert list(moved) == list(branch)
    for name in SHARED:
        expected = branch[CONTROL + name].double() + new[UNET + name].double() - old[UNET + name].double()
        torch.testing.assert_close(moved[CONTROL + name].double(), expected, rtol=1e-6, atol=1e-6)
    for name in OWN:
        assert moved[CONTROL + name] is branch[CONTROL + name]


def test_a_transfer_to_the_same_base_changes_no_bit():
    full = base(0) | control(1)
    assert_equal(surgery.transfer_control(full, base(0), base(0)), full)


def test_a_full_file_moves_as_published():
    """The U-Net by the same offset as the branch; autoencoder and text encoder are the new base's."""
    old, new = base(0), base(1)
    trained = {name: tensor + 1 if name.startswith(UNET) else tensor for name, tensor in old.items()}
    moved = surgery.transfer_control({"betas": torch.ones(3)} | trained | control(2), old, new)
    assert torch.equal(moved["betas"], torch.ones(3))
    for name, tensor in new.items():
        expected = tensor + 1 if name.startswith(UNET) else tensor
        torch.testing.assert_close(moved[name], expected, rtol=1e-6, atol=1e-6)


def test_a_transfer_computes_in_full_precision_and_keeps_the_branches_dtype():
    old, new, branch = base(0), base(1), control(2)
    half = {name: tensor.half() for name, tensor in branch.items()}
    moved = surgery.transfer_control(half, old, {name: tensor.half() for name, tensor in new.items()})
    name = SHARED[0]
    offset = new[UNET + name].half().float() - old[UNET + name]
    expected = (half[CONTROL + name].float() + offset).half()
    assert torch.equal(moved[CONTROL + name], expected)
    assert {tensor.dtype for tensor in moved.values()} == {torch.float16}


def test_lazy_tensors_give_the_same_and_stay_lazy():
    old, new, branch = base(0), base(1), control(2)
    moved = surgery.transfer_control(lazy(branch), lazy(old), lazy(new))
    assert all(isinstance(tensor, LazyTensor) for tensor in moved.values())
    assert_equal(moved, surgery.transfer_control(branch, old, new))


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (control(0), base(1), "the old base has no U-Net"),
        (base(0), control(1), "the new base has no U-Net"),
        (base(0), draw(base(1), 1, (4, 2)), r"time_embed.0.weight is \[4, 2\] in the new base, but \[3, 2\]"),
        (draw(base(0), 0, (4, 2)), base(1), r"time_embed.0.weight is \[4, 2\] in the old base, but \[3, 2\]"),
        (base(0), dict(list(base(1).items())[1:]), "the new base lacks .*time_embed.0.weight .its U-Net is"),
    ],
)  # fmt: skip
def test_bases_that_do_not_fit_are_named(old, new, match):
    with pytest.raises(ValueError, match=match):
        surgery.transfer_control(control(2), old, new)


def test_a_full_file_needs_a_full_new_base():
    unet_only = {name: tensor for name, tensor in base(1).items() if name.startswith(UNET)}
    with pytest.raises(ValueError, match="the new base lacks first_stage_model.a.weight"):
        surgery.transfer_control(base(0) | control(2), base(0), unet_only)


def fresh():
    """An untrained branch without prefix: half of its names are the U-Net's."""
    return draw((*SHARED, *OWN), 3)


def test_a_new_branch_has_the_u_nets_values_where_names_and_shapes_agree():
    own = fresh() | {SHARED[1]: torch.randn(5, 2)}  # of another shape than the U-Net's
    joined, copied = surgery.add_control(base(0), own)
    assert_equal({name: joined[name] for name in base(0)}, base(0))
    assert torch.equal(joined[CONTROL + SHARED[0]], base(0)[UNET + SHARED[0]])
    for name in (SHARED[1], *OWN):
        assert joined[CONTROL + name] is own[name]
    assert copied == [CONTROL + SHARED[0]]
    assert list(surgery.extract_control(joined)) == [CONTROL + name for name in own]


def test_a_new_branch_of_a_half_precision_base_has_its_own_dtype():
    half = {name: tensor.half() for name, tensor in base(0).items()}
    joined, copied = surgery.add_control(half, fresh())
    for name in SHARED:
        assert torch.equal(joined[CONTROL + name], half[UNET + name].float())
        assert joined[CONTROL + name].dtype == torch.float32
        assert joined[UNET + name] is half[UNET + name]


def test_a_new_branch_of_a_lazy_base_copies_nothing_before_it_is_read():
    joined, copied = surgery.add_control(
        lazy({name: tensor.half() for name, tensor in base(0).items()}), fresh()
    )
    assert all(isinstance(joined[name], LazyTensor) for name in copied)
    assert torch.equal(read(joined[copied[0]]), base(0)[UNET + SHARED[0]].half().float())


@pytest.mark.parametrize(
    ("state", "match"),
    [(control(1), "no U-Net to copy from"), (base(0) | control(1), "a control branch is inside already")],
)
def test_a_base_that_takes_no_new_branch_is_refused(state, match):
    with pytest.raises(ValueError, match=match):
        surgery.add_control(state, fresh())


TRAINING = {
    "model_ema.diffusion_modeltime_embed0weight": torch.zeros(3, 2),
    "model_ema.decay": torch.tensor(0.9999),
    "first_stage_model.loss.logvar": torch.zeros(1),
}


def test_strip_removes_what_only_training_needs_and_says_why():
    kept, gone = surgery.strip(base(0) | TRAINING)
    assert_equal(kept, base(0))
    assert {name for names in gone.values() for name in names} == TRAINING.keys()
    assert len(gone) == 2
    assert any("moving averages" in reason for reason in gone)


def test_positions_stay_for_scripts_that_load_strictly():
    state = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(3)[None]}
    assert_equal(surgery.strip(state)[0], state)


def test_strip_can_put_the_averages_in_their_weights_place():
    kept, gone = surgery.strip(base(0) | TRAINING, use_ema=True)
    name = UNET + SHARED[0]
    assert torch.equal(kept[name], TRAINING["model_ema.diffusion_modeltime_embed0weight"])
    assert_equal(
        {k: v for k, v in kept.items() if k != name}, {k: v for k, v in base(0).items() if k != name}
    )
    assert [name for names in gone.values() for name in names] == [
        "model_ema.decay", "first_stage_model.loss.logvar", name,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no moving averages"):
        surgery.strip(base(0), use_ema=True)


EXACT = {
    "betas": torch.rand(3),
    "logvar": torch.zeros(3),
    "model_ema.decay": torch.tensor(0.9999),
    "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(3)[None],
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_change_their_dtype_and_what_must_stay_exact_does_not(dtype):
    state = base(0) | EXACT | {"positional_embedding": torch.rand(2, 2)}
    cast = surgery.to_dtype(state, dtype, Counter())
    for name, tensor in state.items():
        assert torch.equal(cast[name], tensor if name in EXACT else tensor.to(dtype))
        assert cast[name].dtype == (tensor.dtype if name in EXACT else dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_up_and_comes_back_bit_for_bit(dtype):
    half = {name: tensor.to(dtype) for name, tensor in base(0).items()}
    up = surgery.to_dtype(half, torch.float32, Counter())
    assert {tensor.dtype for tensor in up.values()} == {torch.float32}
    assert_equal(surgery.to_dtype(up, dtype, Counter()), half)


@pytest.mark.parametrize("wrap", [dict, lazy])
def test_overflow_is_counted_for_each_tensor_as_it_is_read(wrap):
    state = {
        "a": torch.tensor([1e5, -7e4, 6e4]), "b": torch.ones(2), "c": torch.tensor([float("inf"), 65520.0]),
        "d": torch.tensor([float("nan"), -1e9]), "e": torch.empty(0), "rounds down": torch.tensor([65510.0]),
    }  # fmt: skip
    overflow = Counter()
    cast = surgery.to_dtype(wrap(state), torch.float16, overflow)
    for name, tensor in state.items():
        torch.testing.assert_close(read(cast[name]), tensor.half(), rtol=0, atol=0, equal_nan=True)
    assert overflow == {"a": 2, "c": 1, "d": 1}
