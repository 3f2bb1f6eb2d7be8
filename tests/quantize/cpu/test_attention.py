"""Attention on bytes: the kernel gives the reference's numbers, the reference nearly those of float64."""

import ctypes
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize import native
from quantize.activations import QParams, quantize_uint8
from quantize.arithmetic import sqnr_db
from quantize.cpu import attention
from quantize.cpu.attention import attend_bf16, attend_int8
from tests.quantize.cpu.attention_reference import byte_values, reference

# name -> the function, its reference, signal over noise at Gaussian inputs. An int8 row of up to 160 numbers
# keeps 44 dB, the product of two 41; 48 values of a column keep 45 and 48 weights 46, which leaves 38.6.
# bfloat16 is within 2^-9 of each number.
KINDS = {
    "int8": (attend_int8, lambda *qkv: reference(*qkv, precise=False), 38),
    "bf16": (attend_bf16, lambda *qkv: reference(*qkv, precise=True), 47),
}
WIDTHS = (16, 32, 40, 64, 80, 160)
# Of the kernel to its reference: after sums in another order, a number on the edge between two levels may get
# either. That is 1/128 of one code or weight: next to nothing among many, the whole error where there is one.
# Where logits are larger, so is their share of such a step, and fewer tokens share a row.
MANY_DB = {1: 60, 10: 50, 100: 40}  # by the spread of the logits
FEW_DB = 40
FLOAT32_DB = 110  # of float32 sums of 90 numbers
# What stands for the values.
ROUNDED = {"int8": byte_values, "bf16": lambda v: v.bfloat16().float()}

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def kernel():
    if not attention._widest():
        pytest.skip("there is no attention kernel for this machine")


def inputs(*shape, seed=0, spread=1.0, offset=0.0):
    """q, k and v as views of [b, n, heads * d], with logits of that spread. shape: b, heads, n, m, d."""
    batch, heads, queries, tokens, width = shape
    noise = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, n, heads * width, generator=noise) for n in (queries, tokens, tokens))
    split = (t.view(batch, -1, heads, width).transpose(1, 2) for t in (q * spread, k + offset, v))
    return tuple(split)


def exact(q, k, v):
    logits = q.double() @ k.double().transpose(-1, -2) / math.sqrt(q.shape[-1])
    return torch.softmax(logits, dim=-1) @ v.double()


@every_kind
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, top) for top in (2, 3, 70, 140, 90))),
    seed=st.integers(0, 1000),
    spread=st.sampled_from((0.0, 1.0, 30.0)),
    offset=st.sampled_from((0.0, 20.0)),
)
def test_the_kernel_gives_the_references_numbers_at_any_size(kind, shape, seed, spread, offset):
    if not attention._widest():
        pytest.skip("there is no attention kernel for this machine")
    attend, define, _ = KINDS[kind]
    qkv = inputs(*shape, seed=seed, spread=spread, offset=offset)
    assert sqnr_db(define(*qkv), attend(*qkv)) > FEW_DB


@every_kind
@pytest.mark.parametrize("spread", MANY_DB)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_kernel_gives_the_references_numbers_among_many(kind, width, spread, kernel):
    attend, define, _ = KINDS[kind]
    qkv = inputs(1, 2, 100, 300, width, spread=spread)
    assert sqnr_db(define(*qkv), attend(*qkv)) > MANY_DB[spread]


@every_kind
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("tokens", [77, 256])
def test_the_reference_keeps_the_signal_of_exact_attention(kind, width, tokens):
    _, define, floor = KINDS[kind]
    qkv = inputs(1, 2, 128, tokens, width)
    assert sqnr_db(exact(*qkv), define(*qkv)) > floor


@every_kind
def test_an_offset_of_all_keys_costs_nothing(kind):
    _, define, floor = KINDS[kind]
    qkv = inputs(1, 2, 128, 128, 40, offset=100.0)
    assert sqnr_db(exact(*qkv), define(*qkv)) > floor


@every_kind
def test_logits_get_noisier_no_faster_than_they_grow(kind):
    _, define, floor = KINDS[kind]
    qkv = inputs(1, 2, 128, 256, 40, spread=10.0)
    assert sqnr_db(exact(*qkv), define(*qkv)) > floor - 20  # ten times the logits, ten times their noise


@every_kind
def test_a_query_that_fits_one_key_gets_its_value(kind, kernel):
    attend, _, _ = KINDS[kind]
    _, k, v = inputs(1, 2, 1, 90, 40)
    chosen = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    out = attend(200 * k[:, :, chosen], k, v)  # logits of 200 * sqrt(40) and far below
    assert sqnr_db(ROUNDED[kind](v)[:, :, chosen], out) > FLOAT32_DB


@every_kind
@pytest.mark.parametrize("constant", ["queries of zero", "keys all the same", "keys too small for float32"])
def test_flat_logits_give_the_mean_value(kind, constant, kernel):
    attend, _, _ = KINDS[kind]
    q, k, v = inputs(1, 2, 40, 90, 40)
    if constant == "queries of zero":
        q = torch.zeros_like(q)
    else:
        k = torch.full_like(k, 3.0) if constant == "keys all the same" else k * 1e-42
    mean = ROUNDED[kind](v).mean(dim=2, keepdim=True).expand_as(q)
    assert sqnr_db(mean, attend(q, k, v)) > FLOAT32_DB


@every_kind
def test_of_one_token_the_value_comes_out(kind, kernel):
    attend, _, _ = KINDS[kind]
    q, k, v = inputs(2, 3, 50, 1, 40, spread=20.0)
    # As bfloat16 exactly; of bytes it is the 127th part of itself, times 127.
    expected, ulps = {"int8": (v, 4), "bf16": (v.bfloat16().float(), 0)}[kind]
    rtol = ulps * torch.finfo(torch.float32).eps
    torch.testing.assert_close(attend(q, k, v), expected.expand_as(q), rtol=rtol, atol=0)


@every_kind
def test_strides_do_not_matter(kind, kernel):
    attend, _, _ = KINDS[kind]
    views = inputs(2, 3, 50, 50, 20)
    expected = attend(*(t.contiguous() for t in views))
    joined = torch.cat([t.transpose(1, 2) for t in views], dim=-1).transpose(1, 2).chunk(3, dim=-1)
    crossed = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in views]
    for way in (views, joined, crossed):
        assert torch.equal(attend(*way), expected)


@every_kind
def test_values_of_one_head_may_serve_all(kind, kernel):
    attend, _, _ = KINDS[kind]
    q, k, v = inputs(2, 3, 50, 30, 20)
    k, v = (t[:1, :1].expand_as(t) for t in (k, v))  # strides of zero
    assert torch.equal(attend(q, k, v), attend(q, k.contiguous(), v.contiguous()))


@every_kind
def test_joining_the_heads_of_the_output_copies_nothing(kind, kernel):
    attend, _, _ = KINDS[kind]
    assert attend(*inputs(2, 3, 50, 30, 20)).transpose(1, 2).is_contiguous()


@every_kind
@pytest.mark.parametrize("shape", [(2, 3, 70, 77, 40), (1, 2, 5, 9, 7)])
@pytest.mark.parametrize("native_way", [True, False])
def test_bytes_are_those_of_the_numbers(kind, shape, native_way, monkeypatch, forgotten):
    if not native_way:
        monkeypatch.setattr(native, "function", lambda name, signature: None)
    qkv, qparams = inputs(*shape), QParams(0.01, 90)
    attend, _, _ = KINDS[kind]
    out = quantize_uint8(attend(*qkv).transpose(1, 2).flatten(2), qparams)
    made = attend(*qkv, qparams)
    assert made.qparams == qparams
    assert (made.values.int() - out.int()).abs().max() <= 1
    assert (made.values != out).float().mean() < 1e-3


@every_kind
def test_the_number_of_threads_changes_nothing(kind, kernel):
    attend, _, _ = KINDS[kind]
    qkv, before = inputs(2, 3, 100, 60, 40), torch.get_num_threads()
    try:
        outputs = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outputs.append(attend(*qkv))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, outputs[0]) for one in outputs)


@every_kind
def test_inputs_stay_as_they_are(kind, kernel):
    attend, _, _ = KINDS[kind]
    qkv = inputs(1, 2, 33, 17, 24)
    copies = [t.clone() for t in qkv]
    attend(*qkv)
    assert all(torch.equal(*pair) for pair in zip(qkv, copies, strict=True))


@every_kind
@pytest.mark.parametrize("native_way", [True, False])
@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_spoil_what_they_touch_and_nothing_else(kind, native_way, strange, request):
    if native_way:
        request.getfixturevalue("kernel")
    attend = KINDS[kind][0 if native_way else 1]
    clean = inputs(1, 2, 40, 30, 20)
    expected = attend(*clean)
    # which input -> the places of the output that are spoilt, for the number at head 1, row 7, column 3
    spoilt = {0: (0, 1, 7), 1: (0, 1), 2: (0, 1, slice(None), 3)}
    for which, place in spoilt.items():
        qkv = [t.clone() for t in clean]
        qkv[which][0, 1, 7, 3] = strange
        out, bad = attend(*qkv), torch.zeros_like(expected, dtype=torch.bool)
        bad[place] = True
        if which == 2 and math.isinf(strange):
            assert not torch.isfinite(out[bad]).any()  # infinity times a weight
        else:
            assert torch.isnan(out[bad]).all()
        assert torch.equal(out[~bad], expected[~bad])


@every_kind
def test_logits_beyond_float32_come_out_as_nan(kind, kernel):
    attend, _, _ = KINDS[kind]
    q, k, v = inputs(1, 1, 40, 30, 20)
    assert torch.isnan(attend(q * 1e18, k * 1e18, v)).all()
    assert torch.isnan(attend(q * 0, k * 1e38, v)).all()  # the sums of codes are beyond it already


@pytest.fixture
def forgotten():
    """What was found out about the machine is asked again, before and after."""
    attention._widest.cache_clear()
    yield
    attention._widest.cache_clear()


def torchs(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def test_without_the_library_torch_answers(monkeypatch, forgotten):
    monkeypatch.setattr(native, "function", lambda name, signature: None)
    qkv = inputs(1, 2, 40, 30, 20)
    assert torch.equal(attend_int8(*qkv), torchs(*qkv))


def test_on_a_cpu_without_bfloat16_torch_answers_which_is_said_once(monkeypatch, forgotten, caplog):
    def lacking(name, signature):
        def widest(pointer):
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int64))[0] = 0

        return {"fw_attend_widest": widest}[name]

    monkeypatch.setattr(native, "function", lacking)
    qkv = inputs(1, 2, 40, 30, 20)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(attend_int8(*qkv), torchs(*qkv))
        attend_bf16(*qkv)
    assert [record.message for record in caplog.records] == [
        "this CPU lacks avx512_bf16 or avx512_vbmi: torch computes the attention instead"
    ]


@pytest.mark.parametrize(
    "other",
    [
        lambda q, k, v: (q.bfloat16(), k.bfloat16(), v.bfloat16()),
        lambda q, k, v: (q.double(), k.double(), v.double()),
        lambda q, k, v: (q[0], k[0], v[0]),
        lambda q, k, v: (q, k, torch.cat([v, v], dim=-1)),
        lambda q, k, v: (q[:, :, :0], k, v),
        lambda q, k, v: tuple(t.repeat(1, 1, 1, 30) for t in (q, k, v)),  # 600 wide
    ],
)
def test_what_the_kernel_does_not_take_torch_answers(other):
    qkv = other(*inputs(1, 2, 40, 30, 20))
    assert torch.equal(attend_int8(*qkv), torchs(*qkv))


def test_gradients_flow_through_torch():
    q, k, v = (t.clone().requires_grad_() for t in inputs(1, 2, 10, 30, 20))
    attend_int8(q, k, v).sum().backward()
    assert q.grad.abs().sum() > 0


def test_shapes_that_do_not_fit_raise_torchs_error():
    q, k, v = inputs(1, 2, 40, 30, 20)
    with pytest.raises(RuntimeError, match=r"\d"):
        attend_int8(q, k[..., :10], v)
