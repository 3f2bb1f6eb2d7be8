"""Laws of attention and of the spatial transformer around it."""

import math

import pytest
import torch
import torch.nn.functional as F

from ldm.modules import attention
from ldm.modules.attention import (
    GEGLU,
    BasicTransformerBlock,
    CrossAttention,
    SpatialTransformer,
    attend,
    slice_attention,
)
from tests.small_models import randomize, relative_error

FP32 = 1e-5  # relative, after a sum of some dozen products


@pytest.fixture(autouse=True)
def whole_attention_afterwards():
    yield
    slice_attention(None)


def qkv(heads=3, n=10, m=7, d=8):
    torch.manual_seed(0)
    return [torch.randn(2, heads, length, d) for length in (n, m, m)]


def softmax_in_float64(q, k, v):
    q, k, v = q.double(), k.double(), v.double()
    logits = torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(q.shape[-1])
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return torch.einsum("bhnm,bhmd->bhnd", weights, v)


def test_attend_is_a_softmax_average_of_the_values():
    assert relative_error(attend(*qkv()), softmax_in_float64(*qkv())) < FP32


@pytest.mark.parametrize("rows", [1, 4, 5, 6, 100])
def test_sliced_attention_equals_the_whole(rows):
    assert relative_error(attend(*qkv(), slice_rows=rows), attend(*qkv())) < FP32


def test_a_slice_holds_no_more_rows_than_asked(monkeypatch):
    seen, whole = [], F.scaled_dot_product_attention

    def watched(q, k, v):
        seen.append(tuple(q.shape))
        return whole(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    attend(*qkv(), slice_rows=4)
    assert seen == [(4, 1, 10, 8), (2, 1, 10, 8)]  # four axes: with three, torch leaves its fused kernels


def test_slice_attention_reaches_layers_that_exist_already_and_none_ends_it(monkeypatch):
    layer, x = randomize(CrossAttention(16, heads=4, dim_head=4)), torch.randn(2, 5, 16)
    rows, inner = [], attend
    monkeypatch.setattr(attention, "attend", lambda q, k, v, r: rows.append(r) or inner(q, k, v, r))
    whole = layer(x)
    slice_attention(2)
    sliced = layer(x)
    slice_attention(None)
    layer(x)
    assert rows == [None, 2, None]
    assert relative_error(sliced, whole) < FP32


def test_slicing_one_model_leaves_others_alone():
    ours, others = (torch.nn.Sequential(CrossAttention(16, heads=2, dim_head=8)) for _ in range(2))
    slice_attention(1, ours)
    assert (ours[0].slice_rows, others[0].slice_rows) == (1, None)


def test_a_slice_without_rows_is_refused():
    with pytest.raises(ValueError, match=r"slice_attention\(rows=0\): use at least 1 row"):
        slice_attention(0)


def test_without_context_positions_attend_to_each_other():
    layer, x = randomize(CrossAttention(16, heads=4, dim_head=4)), torch.randn(2, 5, 16)
    assert torch.equal(layer(x), layer(x, context=x))


def test_the_order_of_the_text_tokens_does_not_matter_to_cross_attention():
    layer = randomize(CrossAttention(16, context_dim=12, heads=4, dim_head=4))
    x, text = torch.randn(2, 5, 16), torch.randn(2, 7, 12)
    assert relative_error(layer(x, text.flip(1)), layer(x, text)) < FP32
    assert relative_error(layer(x, text + 1), layer(x, text)) > 0.01


def test_upcast_attention_equals_the_plain_one_in_float32():
    plain = randomize(CrossAttention(16, heads=4, dim_head=4))
    upcast = CrossAttention(16, heads=4, dim_head=4, upcast=True)
    upcast.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 16)
    assert torch.equal(upcast(x), plain(x))


@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize(("upcast", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_only_upcast_attention_leaves_half_precision(monkeypatch, how, upcast, dtype):
    layer, x = randomize(CrossAttention(16, heads=4, dim_head=4, upcast=upcast)), torch.randn(2, 5, 16)
    exact, seen, inner = layer(x), [], attend

    def watched(*qkv):
        out = inner(*qkv)
        seen.append(out.dtype)  # autocast lowers inside the call what was float32 before it
        return out

    monkeypatch.setattr(attention, "attend", watched)
    if how == "weights":
        out = layer.bfloat16()(x.bfloat16())
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer(x)
    assert seen == [dtype]
    assert out.dtype == torch.bfloat16
    assert relative_error(out, exact) < 0.05  # eight bits of mantissa, four matrix products


def test_the_gate_is_the_second_half_and_an_exact_gelu():
    layer, x = randomize(GEGLU(6, 5)), torch.randn(2, 3, 6)
    value, gate = layer.proj(x)[..., :5], layer.proj(x)[..., 5:]
    gelu = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))  # Hendrycks & Gimpel 2016, not its tanh form
    torch.testing.assert_close(layer(x), value * gelu)


def test_a_fresh_spatial_transformer_changes_nothing():
    x, text = torch.randn(2, 8, 4, 6), torch.randn(2, 7, 12)
    assert torch.equal(SpatialTransformer(8, 12, heads=2, dim_head=4, groups=4)(x, text), x)


def test_linear_and_convolutional_projections_are_the_same_arithmetic():
    options = {"heads": 2, "dim_head": 4, "groups": 4, "depth": 2}
    conv = randomize(SpatialTransformer(8, 12, **options))
    linear = SpatialTransformer(8, 12, **options, use_linear=True)
    state = {k: v.flatten(1) if v.ndim == 4 else v for k, v in conv.state_dict().items()}
    linear.load_state_dict(state, strict=True)
    x, text = torch.randn(2, 8, 4, 6), torch.randn(2, 7, 12)
    assert relative_error(linear(x, text), conv(x, text)) < FP32


def test_positions_have_no_order_of_their_own():
    layer = randomize(SpatialTransformer(8, 12, heads=2, dim_head=4, groups=4))
    x, text = torch.randn(2, 8, 4, 6), torch.randn(2, 7, 12)
    order = torch.randperm(24)

    def shuffled(maps):
        return maps.flatten(2)[..., order].unflatten(2, (4, 6))

    assert relative_error(layer(shuffled(x), text), shuffled(layer(x, text))) < FP32


def test_the_blocks_run_self_attention_then_text_then_feed_forward():
    block = randomize(BasicTransformerBlock(8, 12, heads=2, dim_head=4))
    x, text = torch.randn(2, 5, 8), torch.randn(2, 7, 12)
    ran = []
    for name in ("attn1", "attn2", "ff"):
        getattr(block, name).register_forward_hook(lambda *_, name=name: ran.append(name))
    out = block(x, text)
    assert ran == ["attn1", "attn2", "ff"]
    h = x + block.attn1(block.norm1(x))
    h = h + block.attn2(block.norm2(h), text)
    torch.testing.assert_close(out, h + block.ff(block.norm3(h)))


def test_recomputing_activations_changes_neither_values_nor_gradients():
    layer = randomize(SpatialTransformer(8, 12, heads=2, dim_head=4, groups=4, depth=2))
    x, text = torch.randn(2, 8, 4, 6), torch.randn(2, 7, 12)

    def run(use_checkpoint):
        layer.use_checkpoint = use_checkpoint
        layer.zero_grad()
        out = layer(x, text)
        out.square().sum().backward()
        return [out.detach(), *(parameter.grad.clone() for parameter in layer.parameters())]

    for kept, recomputed in zip(run(False), run(True), strict=True):
        assert torch.equal(kept, recomputed)
