"""Native kernels give what plain torch gives, and both what float64 says, for any shape, format and dtype."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize import native
from quantize.activations import QParams, Quantized, qparams_of, quantize_uint8, range_of
from quantize.cpu import activations as kernels

NATIVE = native.library()
EPS = 1e-5
# How far from the nearest level, in levels, float32 may land: half, and what rounding adds to that.
HALF = 0.5 + 2e-3
RANGES = [None, QParams(0.037, 90)]
# A kernel, and a call of it that ends in `qparams` or looks for itself.
CALLS = {
    "quantize": lambda x, qparams: kernels.quantize(x, qparams),
    "layer norm": lambda x, qparams: kernels.layer_norm_quantize(
        x, torch.ones(x.shape[-1]), torch.zeros(x.shape[-1]), EPS, qparams
    ),
    "gate": lambda x, qparams: kernels.geglu_quantize(x, qparams),
    "group norm": lambda x, qparams: group_norm(x, 2, silu=False, qparams=qparams),
    "group norm and SiLU": lambda x, qparams: group_norm(x, 2, silu=True, qparams=qparams),
}


@pytest.fixture(params=["native", "plain"])
def way(request, monkeypatch):
    """Once with the library, once as where there is none."""
    if request.param == "native" and NATIVE is None:
        pytest.skip("no compiler, or a CPU without VNNI")
    if request.param == "plain":
        monkeypatch.setattr(native, "library", lambda: None)
    return request.param


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def group_norm(x, groups, *, silu, qparams, shift=None):
    c = x.shape[1]
    weight, bias = 1 + 0.5 * seeded(c, seed=1), seeded(c, seed=2)
    return kernels.group_norm_quantize(x, groups, weight, bias, EPS, silu=silu, qparams=qparams, shift=shift)


def exact_group_norm(x, groups, *, silu, shift=None):
    c, x = x.shape[1], x.double()
    weight, bias = 1 + 0.5 * seeded(c, seed=1).double(), seeded(c, seed=2).double()
    x = x if shift is None else x + shift.double()[:, :, None, None]
    y = torch.group_norm(x, groups, weight, bias, EPS)
    return F.silu(y) if silu else y


def assert_levels(got: Quantized, exact):
    """Every byte is the level nearest to the exact number, or its neighbour on an edge."""
    level = (exact / got.qparams.scale + got.qparams.zero).clamp(0, 255)
    assert got.values.dtype == torch.uint8
    assert got.values.shape == exact.shape
    assert (got.values.double() - level).abs().max() <= HALF


def assert_covers(got: Quantized, exact, slack=1e-4):
    """The range that was found holds the numbers, and reaches little farther."""
    low, high = min(0.0, exact.min().item()), max(0.0, exact.max().item())
    assert got.qparams.scale * 255 == pytest.approx(high - low, rel=1e-4, abs=slack)
    assert -got.qparams.zero * got.qparams.scale == pytest.approx(low, abs=got.qparams.scale * HALF + slack)


@st.composite
def tensors(draw):
    """Any shape of up to four axes, axes in any order, dense or a slice, in any float dtype."""
    shape = draw(st.lists(st.integers(1, 21), min_size=1, max_size=4))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    x = seeded(*shape, seed=draw(st.integers(0, 99))) * draw(st.sampled_from([1e-6, 1.0, 300.0]))
    x = x.to(dtype).permute(draw(st.permutations(range(len(shape)))))
    return x[..., :: draw(st.sampled_from([1, 1, 2]))]


@settings(deadline=None, max_examples=80)
@given(tensors(), st.sampled_from(RANGES))
def test_bytes_and_extremes_are_those_of_the_formulas(x, qparams):
    got = kernels.quantize(x, qparams)
    assert kernels.quantize(x, None).qparams == qparams_of(*range_of(x))
    assert torch.equal(got.values, quantize_uint8(x, got.qparams))
    assert qparams is None or got.qparams == qparams
    if x.is_contiguous(memory_format=torch.preserve_format if x.ndim != 4 else torch.channels_last):
        # An axis of one element may have any stride.
        walked = [axis for axis, length in enumerate(x.shape) if length > 1]
        assert [got.values.stride(axis) for axis in walked] == [x.stride(axis) for axis in walked]


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_bytes_keep_the_memory_format(format, way):
    x = seeded(2, 5, 4, 3).contiguous(memory_format=format)
    assert kernels.quantize(x, None).values.stride() == x.stride()
    x = x.transpose(0, 3)  # dense still
    assert kernels.quantize(x, None).values.stride() == x.stride()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_group_norm_makes_the_nearest_bytes(data):
    batch, groups, size = (data.draw(st.integers(1, top)) for top in (3, 5, 20))
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    x = seeded(batch, groups * size, height, width, seed=data.draw(st.integers(0, 99))) * 3 + 1
    x = x.contiguous(memory_format=data.draw(st.sampled_from([torch.contiguous_format, torch.channels_last])))
    shift = data.draw(st.sampled_from([None, seeded(batch, groups * size, seed=5)]))
    silu, qparams = data.draw(st.booleans()), data.draw(st.sampled_from(RANGES))
    got = group_norm(x, groups, silu=silu, qparams=qparams, shift=shift)
    assert_levels(got, exact_group_norm(x, groups, silu=silu, shift=shift))
    assert got.values.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(2, 320, 16, 16), (1, 40, 70, 70), (2, 1280, 8, 8), (1, 2560, 6, 5)])
@pytest.mark.parametrize("qparams", RANGES)
@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_at_the_sizes_of_networks(shape, qparams, silu, way):
    x, shift = seeded(*shape), seeded(*shape[:2], seed=4)
    exact = exact_group_norm(x, 20, silu=silu, shift=shift)
    got = group_norm(x, 20, silu=silu, qparams=qparams, shift=shift)
    assert_levels(got, exact)
    if qparams is None:
        assert_covers(got, exact)


@pytest.mark.parametrize("shift", [None, seeded(2, 30)])
def test_float_group_norm_is_as_good_as_torchs(shift, way):
    x, weight, bias = seeded(2, 30, 9, 7) * 4, seeded(30, seed=1), seeded(30, seed=2)
    got = kernels.group_norm_silu(x, 5, weight, bias, EPS, shift)
    moved = x.double() if shift is None else x.double() + shift.double()[:, :, None, None]
    exact = F.silu(F.group_norm(moved, 5, weight.double(), bias.double(), EPS))
    assert got.dtype == torch.float32
    assert (got - exact).abs().max() < 2e-6 * exact.abs().max()


@pytest.mark.skipif(NATIVE is None, reason="torch's own loses the spread of these")
def test_group_norm_of_numbers_far_from_zero():
    """float32 knows these to 1e-3; sums of squares around zero would not know their spread at all."""
    x = seeded(1, 8, 50, 50) + 1e4
    assert_levels(group_norm(x, 2, silu=False, qparams=RANGES[1]), exact_group_norm(x, 2, silu=False))


@pytest.mark.parametrize("place", [(0, 0), (20, 31)])
def test_one_strange_pixel_does_not_spoil_the_spread(place, way):
    x = seeded(1, 8, 80, 80)
    x[(slice(None), slice(None), *place)] = 3e3
    got = group_norm(x, 2, silu=False, qparams=QParams(1e-3, 128))
    assert_levels(got, exact_group_norm(x, 2, silu=False))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=0, max_size=2), st.integers(1, 70), st.sampled_from(RANGES))
def test_layer_norm_makes_the_nearest_bytes(lead, width, qparams):
    x, weight, bias = seeded(*lead, width) * 3 + 1, 1 + 0.5 * seeded(width, seed=1), seeded(width, seed=2)
    got = kernels.layer_norm_quantize(x, weight, bias, EPS, qparams)
    exact = F.layer_norm(x.double(), (width,), weight.double(), bias.double(), EPS)
    assert_levels(got, exact)
    if qparams is None:
        assert_covers(got, exact)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=0, max_size=2), st.integers(1, 70), st.sampled_from(RANGES))
def test_the_gate_makes_the_nearest_bytes(lead, width, qparams):
    x = seeded(*lead, 2 * width) * 2
    got = kernels.geglu_quantize(x, qparams)
    value, gate = x.double().chunk(2, dim=-1)
    assert_levels(got, value * F.gelu(gate))
    if qparams is None:
        assert_covers(got, value * F.gelu(gate), slack=1e-6)


def test_gelu_is_exact_to_float32(way):
    """One number's own range tells it in full: 255 steps are its distance from zero."""
    for gate in torch.linspace(-12, 12, 97).tolist():
        found = 255 * kernels.geglu_quantize(torch.tensor([1.0, gate]), None).qparams.scale
        exact = abs(gate * 0.5 * math.erfc(-gate / math.sqrt(2)))
        nothing_left = exact == 0 or (way == "plain" and exact < 1e-6)  # and then the step is 1
        assert found == pytest.approx(exact, rel=2e-7, abs=3e-7) or (nothing_left and found == 255)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("qparams", RANGES)
def test_zeros_and_constants(name, qparams, way):
    for value in (0.0, -3.0, 1e-40):
        got = CALLS[name](torch.full((2, 4, 3, 6), value), qparams)
        assert torch.isfinite(got.float()).all()
        if value == 0 and "group" not in name:
            assert not got.float().any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 37, -1])
@pytest.mark.parametrize("name", CALLS)
def test_nan_and_infinity_are_refused_where_the_range_is_asked_of_them(name, place, bad, way):
    x = seeded(2, 4, 5, 6)
    x.view(-1)[place] = bad
    with pytest.raises(ValueError, match="only numbers can be quantized"):
        CALLS[name](x, None)


def test_by_a_given_range_what_is_no_number_gets_an_end(way):
    x = torch.tensor([math.nan, 1.0, -math.inf, math.inf, 0.0])
    assert kernels.quantize(x, QParams(0.1, 7)).values.tolist() == [0, 17, 0, 255, 7]


def test_the_range_of_silu_is_that_of_the_whole_interval():
    def silu(x):
        return x / (1 + math.exp(-x))

    least = min(silu(-2 + 0.001 * i) for i in range(1000))
    for low, high in ((-9, 2), (-1, 2), (-9, -4), (0, 0), (-1.3, -1.2)):
        expected = least if low < -1.278 < high else min(silu(low), silu(high))
        got = kernels.silu_range(low, high)
        assert got == pytest.approx((expected, max(silu(low), silu(high))), rel=1e-6, abs=1e-7)
    assert all(math.isnan(end) for end in kernels.silu_range(math.nan, 1))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("qparams", RANGES)
def test_the_number_of_threads_changes_nothing(name, qparams):
    x, before, seen = seeded(2, 64, 32, 32), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            seen.append(CALLS[name](x, qparams))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one.values, seen[0].values) and one.qparams == seen[0].qparams for one in seen)


@pytest.mark.parametrize("name", CALLS)
def test_strided_inputs_with_gradients_and_in_half_precision(name, way):
    wide = seeded(2, 4, 5, 24)
    got = CALLS[name](wide[..., ::2].requires_grad_(), RANGES[1])
    same = CALLS[name](wide[..., ::2].contiguous(), RANGES[1])
    assert torch.equal(got.values, same.values)
    assert not got.values.requires_grad
    half = wide[..., ::2].bfloat16()
    assert torch.equal(CALLS[name](half, RANGES[1]).values, CALLS[name](half.float(), RANGES[1]).values)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_in_nothing_out(name, way):
    got = CALLS[name](torch.zeros(0, 4, 5, 6), RANGES[1])
    assert got.values.shape[0] == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: kernels.group_norm_quantize(x, 3, w, w, EPS, silu=True, qparams=None),
        lambda x, w: kernels.group_norm_quantize(x[0], 2, w, w, EPS, silu=True, qparams=None),
        lambda x, w: kernels.group_norm_quantize(x, 2, w[:3], w, EPS, silu=True, qparams=None),
        lambda x, w: kernels.group_norm_silu(x, 2, w, w[:3], EPS),
        lambda x, w: kernels.group_norm_silu(x, 2, w, w, EPS, shift=w),
        lambda x, w: kernels.layer_norm_quantize(x, w, w, EPS, None),
        lambda x, w: kernels.geglu_quantize(x[..., 1:], None),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, way):
    with pytest.raises(ValueError, match=r"\[.*\]"):
        call(seeded(2, 4, 5, 6), seeded(4))
