"""Round trips, error bounds from the bit width, and the tensors that formulas forget."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize import arithmetic
from quantize.activations import dequantize_uint8, qparams_of, quantize_uint8, range_of
from quantize.arithmetic import (
    INT8_PEAK,
    dequantize_channels,
    dequantize_int4,
    pack_int4,
    quantize_fp8,
    quantize_int4,
    quantize_int8,
    sqnr_db,
    unpack_int4,
)

FEW = settings(max_examples=40, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31)
SCALES = st.sampled_from([1e-20, 1e-6, 0.02, 1.0, 300.0, 1e20])
SHAPES = st.sampled_from([(1, 1), (3, 40), (5, 64), (4, 3, 3, 3), (2, 130), (6, 8, 1, 1)])
GROUPS = st.sampled_from([32, 64, 128])
CLIPS = ("max", "mse")
ROUNDING = 1 + 1e-5  # float32 divides and multiplies on the way


def normal(shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def int8_back(weight, clip="max"):
    return dequantize_channels(*quantize_int8(weight, clip))


def int4_back(weight, group=64, clip="mse"):
    return dequantize_int4(*quantize_int4(weight, group, clip), weight.shape)


def fp8_back(weight):
    return dequantize_channels(*quantize_fp8(weight))


def uint8_back(x):
    qparams = qparams_of(*range_of(x))
    return dequantize_uint8(quantize_uint8(x, qparams), qparams)


ALL_BACK = {"int8": int8_back, "int4": int4_back, "fp8": fp8_back, "uint8": uint8_back}


@FEW
@given(SHAPES, SEEDS, SCALES)
def test_int8_errs_by_half_a_step_of_its_channel_at_most(shape, seed, scale):
    weight = normal(shape, seed, scale)
    values, steps = quantize_int8(weight, "max")
    error = (dequantize_channels(values, steps) - weight).abs().flatten(1).amax(dim=1)
    assert (error <= steps / 2 * ROUNDING).all()
    assert values.abs().max() <= INT8_PEAK
    assert steps.shape == shape[:1]


@FEW
@given(SHAPES, SEEDS, SCALES)
def test_a_byte_errs_by_half_a_step_at_most_and_keeps_zero(shape, seed, scale):
    x = normal(shape, seed, scale) + scale
    qparams = qparams_of(*range_of(x))
    error = (dequantize_uint8(quantize_uint8(x, qparams), qparams) - x).abs().max()
    # Where the zero point is rounded, an end of the range may lie half a step outside.
    assert error <= qparams.scale * ROUNDING
    assert dequantize_uint8(quantize_uint8(torch.zeros(1), qparams), qparams) == 0


@FEW
@given(st.lists(st.integers(-8, 7), min_size=2, max_size=64).filter(lambda levels: len(levels) % 2 == 0))
def test_packing_two_levels_in_a_byte_loses_nothing(levels):
    expected = torch.tensor(levels, dtype=torch.int8)
    packed = pack_int4(expected)
    assert packed.shape == (len(levels) // 2,)
    assert torch.equal(unpack_int4(packed), expected)


@FEW
@given(SHAPES, GROUPS, SEEDS, SCALES)
def test_int4_takes_half_a_byte_and_keeps_the_shape(shape, group, seed, scale):
    weight = normal(shape, seed, scale)
    packed, steps = quantize_int4(weight, group)
    groups = math.ceil(math.prod(shape[1:]) / group)
    assert packed.shape == (shape[0], groups, group // 2)
    assert steps.shape == (shape[0], groups)
    assert dequantize_int4(packed, steps, shape).shape == shape


@FEW
@given(SHAPES, SEEDS, SCALES)
def test_quantizing_what_was_quantized_changes_nothing(shape, seed, scale):
    """For codes that reach the end of their range: then the same step is found again."""
    once = int8_back(normal(shape, seed, scale))
    assert torch.allclose(int8_back(once), once, rtol=1e-6)


@pytest.mark.parametrize(
    ("back", "floor"),
    # Gaussian values: 6.02 dB a bit + 10.8 dB - 20 lg(peak / sigma), the peak of 512 draws being 3 to 4 sigma
    # (uint8 and int8); the least possible with 16 even steps is 20.2 dB (Max 1960), which groups of 64 do
    # reach; e4m3 rounds to 3 bits: half a step is 1/16 of a value at most.
    [(int8_back, 40), (uint8_back, 38), (int4_back, 19.5), (fp8_back, 30)],
)
def test_the_noise_is_as_small_as_the_bits_allow(back, floor):
    weight = normal((64, 512))
    assert sqnr_db(weight, back(weight)) > floor


@pytest.mark.parametrize(("back", "inputs"), [(int8_back, 1 << 14), (int4_back, 256)])
def test_searching_the_step_gains_where_tails_are_long(back, inputs):
    weight = normal((8, inputs)) ** 3
    errors = {clip: (back(weight, clip=clip) - weight).square().sum() for clip in CLIPS}
    assert errors["mse"] < errors["max"]


@FEW
@given(SHAPES, SEEDS)
def test_searching_the_step_never_loses(shape, seed):
    weight = normal(shape, seed)
    errors = {clip: (int8_back(weight, clip=clip) - weight).double().square().sum() for clip in CLIPS}
    assert errors["mse"] <= errors["max"] * ROUNDING


def test_channels_have_steps_of_their_own():
    weight = normal((4, 64))
    louder = weight * torch.tensor([1.0, 2**10, 2**-10, 2**20])[:, None]  # others round to other steps
    assert torch.equal(quantize_int8(louder)[0], quantize_int8(weight)[0])
    loudness = torch.tensor([1.0, 1e3, 1e-3, 1e6])[:, None]
    assert sqnr_db(weight, int8_back(weight * loudness) / loudness) > sqnr_db(weight, int8_back(weight)) - 0.1


def test_int4_uses_all_levels_whatever_the_sign_of_the_peak():
    ramp = torch.linspace(-7, 8, 64)[None]
    for weight in (ramp, -ramp):
        levels = unpack_int4(quantize_int4(weight, 64, "max")[0])
        assert (levels.min(), levels.max()) == (-8, 7)


@pytest.mark.parametrize("name", ALL_BACK)
@pytest.mark.parametrize("value", [0.0, 1e-40, -1e-45])
def test_zeros_and_denormals_become_zero(name, value):
    assert torch.equal(ALL_BACK[name](torch.full((4, 64), value)), torch.zeros(4, 64))


@pytest.mark.parametrize("name", ALL_BACK)
@pytest.mark.parametrize("value", [3.0, -0.25, 1e-30, 1e30])
def test_a_constant_survives(name, value):
    constant = torch.full((4, 64), value)
    # 2**-8: bfloat16's rounding of an int4 step; the others are exact to float32
    assert torch.allclose(ALL_BACK[name](constant), constant, rtol=2**-8)


@pytest.mark.parametrize("name", ALL_BACK)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_in_a_sentence(name, value):
    weight = normal((4, 64))
    weight[1, 2] = value
    with pytest.raises(ValueError, match="only numbers can be quantized"):
        ALL_BACK[name](weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ALL_BACK)
def test_every_floating_type_gives_what_float32_gives(name, dtype):
    weight = normal((4, 64)).to(dtype)
    assert torch.equal(ALL_BACK[name](weight), ALL_BACK[name](weight.float()))


@pytest.mark.parametrize("quantizer", [quantize_int8, quantize_fp8, lambda w: quantize_int4(w, 64)])
def test_a_weight_is_worked_on_in_pieces_with_the_same_result(monkeypatch, quantizer):
    weight = normal((7, 100))
    whole = quantizer(weight)
    monkeypatch.setattr(arithmetic, "PIECE_VALUES", 250)
    for got, expected in zip(quantizer(weight), whole, strict=True):
        assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8))


def test_values_beyond_the_range_get_its_ends():
    qparams = qparams_of(-1, 3)
    got = dequantize_uint8(quantize_uint8(torch.tensor([-50.0, 50.0]), qparams), qparams)
    assert torch.allclose(got, torch.tensor([-1.0, 3.0]), atol=qparams.scale / 2)


@pytest.mark.parametrize("group", [16, 33, 256, 0])
def test_a_group_outside_of_32_to_128_is_refused(group):
    with pytest.raises(ValueError, match="32 to 128"):
        quantize_int4(normal((2, 64)), group)


def test_an_unknown_clip_names_the_known_ones():
    with pytest.raises(ValueError, match="mse, max"):
        quantize_int8(normal((2, 8)), "median")


def test_a_range_upside_down_is_refused():
    with pytest.raises(ValueError, match="lower end comes first"):
        qparams_of(2, 1)


def test_of_nothing_the_range_is_zero():
    assert range_of(torch.empty(0, 3)) == (0.0, 0.0)
    assert qparams_of(0.0, 0.0) == (1.0, 0)
