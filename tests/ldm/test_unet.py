"""Laws of the U-Net and of the convolutional pieces it is made of."""

import math

import pytest
import torch
from torch import nn

from ldm.modules.layers import (
    Downsample,
    ResBlock,
    Upsample,
    cat_skip,
    expand_batch,
    shared_batch,
    timestep_embedding,
    zero_module,
)
from ldm.modules.unet import UNetConfig, UNetModel
from tests.small_models import SD15, SD21, randomize, relative_error

BARE = {
    "in_channels": 4, "model_channels": 320, "num_res_blocks": 2, "attention_resolutions": [4, 2, 1],
}  # fmt: skip
FP32 = 1e-5  # relative, through some dozen layers
FAMILIES = pytest.mark.parametrize("params", [SD15, SD21], ids=["sd15", "sd21"])


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    return torch.randn(2, 4, 8, 12), torch.tensor([3, 741]), torch.randn(2, 7, 32)


def unet(params=SD15, **more):
    torch.manual_seed(0)
    return randomize(UNetModel(**params, **more)).eval()


def test_time_is_embedded_by_cosines_then_sines_of_falling_frequency():
    embedding = timestep_embedding(torch.tensor([0, 1, 999]), 8).double()
    frequencies = [10_000 ** (-i / 4) for i in range(4)]
    for row, t in zip(embedding, (0, 1, 999), strict=True):
        expected = [math.cos(t * f) for f in frequencies] + [math.sin(t * f) for f in frequencies]
        torch.testing.assert_close(row, torch.tensor(expected).double(), atol=1e-4, rtol=0)


def test_an_odd_width_is_padded_and_fractions_of_timesteps_count():
    assert timestep_embedding(torch.tensor([5]), 7)[0, -1] == 0
    whole, between = timestep_embedding(torch.tensor([5.0, 5.5]), 8)
    assert torch.equal(whole, timestep_embedding(torch.tensor([5]), 8)[0])
    assert not torch.allclose(whole, between)


def test_zero_module_zeroes_every_parameter_and_returns_the_module():
    layer = nn.Conv2d(2, 3, 1)
    assert zero_module(layer) is layer
    assert not any(parameter.any() for parameter in layer.parameters())


def test_a_fresh_residual_block_passes_its_input_on():
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    assert torch.equal(ResBlock(8, 16, 8, groups=4)(x, emb), x)
    wider = ResBlock(8, 16, 12, groups=4)
    assert torch.equal(wider(x, emb), wider.skip_connection(x))


def test_time_shifts_whole_channels_of_a_residual_block():
    block = randomize(ResBlock(8, 16, 8, groups=4))
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    hidden = block.in_layers(x) + block.emb_layers(emb)[:, :, None, None]
    torch.testing.assert_close(block(x, emb), x + block.out_layers(hidden))


def test_downsampling_halves_and_upsampling_repeats():
    x = torch.randn(1, 4, 6, 10)
    assert Downsample(4)(x).shape == (1, 4, 3, 5)
    up = Upsample(4)
    nn.init.dirac_(up.conv.weight)
    nn.init.zeros_(up.conv.bias)
    assert torch.equal(up(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


@torch.no_grad()
def test_rows_given_twice_are_computed_once_until_the_text_comes_in():
    x, t, text = (
        torch.randn(2, 4, 3, 3).repeat(2, 1, 1, 1),
        torch.tensor([3, 741]).repeat(2),
        torch.randn(4, 7, 8),
    )
    assert shared_batch(text, x, t) == 2
    assert shared_batch(text[:3], x[:3], t[:3]) == 3
    for other in (x + torch.tensor([0.0, 0, 0, 1])[:, None, None, None], x * float("nan")):
        assert shared_batch(text, other, t) == shared_batch(text, x, t, other) == 4
    assert shared_batch(text, x, torch.tensor([3, 741, 3, 740])) == 4


@torch.no_grad()
def test_rows_are_shared_neither_without_texts_of_their_own_nor_on_a_card_nor_with_gradients():
    x, text = torch.ones(2, 4), torch.randn(2, 7, 8)
    assert shared_batch(text, x) == 1
    assert shared_batch(None, x) == shared_batch(text[:1], x) == 2
    assert shared_batch(text.to("meta"), x.to("meta")) == 2  # holds no numbers: was not asked for any
    with torch.enable_grad():
        assert shared_batch(text, x) == 2


def test_repeated_rows_keep_their_order_and_lie_as_before():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    repeated = expand_batch(x, torch.empty(6, 1))
    assert torch.equal(repeated, torch.cat([x, x, x]))
    assert repeated.is_contiguous(memory_format=torch.channels_last)
    assert all(expand_batch(x, like) is x for like in (None, x, x[:1]))


@FAMILIES
@torch.no_grad()
def test_a_guided_batch_gets_what_its_halves_get_apart(params, inputs):
    x, t, text = inputs
    model, rows = unet(params), {}
    for name in ("0.0", "1.0", "1.1.transformer_blocks.0.attn1", "1.1.transformer_blocks.0.attn2", "2.0"):
        block = model.input_blocks.get_submodule(name)
        block.register_forward_pre_hook(lambda _, args, name=name: rows.update({name: len(args[0])}))
    texts = torch.cat([text, text.flip(0)])
    guided = model(torch.cat([x, x]), torch.cat([t, t]), texts)
    assert list(rows.values()) == [2, 2, 2, 4, 4]
    apart = torch.cat([model(x, t, one) for one in texts.chunk(2)])
    assert relative_error(guided, apart) < FP32


@FAMILIES
@torch.no_grad()
def test_a_fresh_unet_predicts_zero(params, inputs):
    assert not UNetModel(**params)(*inputs).any()


@FAMILIES
@torch.no_grad()
def test_any_size_that_halves_evenly_keeps_its_size(params, inputs):
    x, t, text = inputs
    assert unet(params)(*inputs).shape == x.shape
    assert unet(params, out_channels=6)(x[..., :4], t, text).shape == (2, 6, 8, 4)


@torch.no_grad()
def test_latent_time_and_text_all_matter_and_samples_of_a_batch_do_not_meet(inputs):
    model = unet()
    out = model(*inputs)
    for place in range(3):
        changed = list(inputs)
        changed[place] = torch.stack([inputs[place][0], inputs[place][1] * 0])
        other = model(*changed)
        assert relative_error(other[0], out[0]) < FP32
        assert relative_error(other[1], out[1]) > 0.01


@torch.no_grad()
def test_without_a_text_width_every_attention_looks_at_positions(inputs):
    x, t, text = inputs
    model = unet({**SD15, "context_dim": None})
    assert model(x, t).shape == x.shape


@FAMILIES
def test_recomputing_activations_changes_neither_values_nor_gradients(params, inputs):
    kept, recomputing = unet(params), unet(params, use_checkpoint=True)
    outs = []
    for model in (kept, recomputing):
        out = model(*inputs)
        out.square().mean().backward()
        outs.append(out)
    assert torch.equal(*outs)
    for a, b in zip(kept.parameters(), recomputing.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_recomputing_holds_fewer_activations(inputs):
    def held(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(*inputs)
        return sum(sizes)

    assert held(unet(use_checkpoint=True)) < held(unet()) / 2


@FAMILIES
@torch.no_grad()
def test_half_precision_takes_float32_inputs_and_answers_in_kind(params, inputs):
    model = unet(params)
    exact = model(*inputs)
    out = model.bfloat16()(*inputs)
    assert model.dtype == torch.bfloat16
    assert out.dtype == torch.float32
    assert relative_error(out, exact) < 0.1  # eight bits of mantissa through some dozen layers
    x, t, text = inputs
    assert model(x.bfloat16(), t, text.bfloat16()).dtype == torch.bfloat16


@FAMILIES
@torch.no_grad()
def test_autocast_runs_and_stays_near_float32(params, inputs):
    model = unet(params)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(*inputs)
    assert relative_error(out, model(*inputs)) < 0.1


def test_heads_follow_their_number_or_their_width():
    by_number = UNetConfig.from_params(BARE | {"num_heads": 8})
    by_width = UNetConfig.from_params(BARE | {"num_head_channels": 64})
    assert [by_number.heads(c) for c in (320, 1280)] == [(8, 40), (8, 160)]
    assert [by_width.heads(c) for c in (320, 1280)] == [(5, 64), (20, 64)]


def test_published_settings_that_change_nothing_are_accepted_and_misspelt_ones_refused():
    inert = {"image_size": 32, "use_spatial_transformer": True, "legacy": False}
    assert UNetConfig.from_params(SD15 | inert) == UNetConfig.from_params(SD15)
    with pytest.raises(ValueError, match="the U-Net does not know num_head; it takes .*num_heads"):
        UNetModel(**SD15, num_head=8)


def test_heads_must_be_given():
    with pytest.raises(ValueError, match="needs num_heads or num_head_channels"):
        UNetModel(**BARE)


@pytest.mark.parametrize("grad", [True, False], ids=["with gradients", "without"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("form", ["none", "whole", "pooled", "of another dtype"])
def test_a_residual_is_added_to_its_skip_on_the_way_to_its_place(form, layout, grad):
    noise = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, channels, 6, 4, generator=noise) for channels in (8, 12, 12)]
    h, skip, residual = (one.contiguous(memory_format=layout) for one in drawn)
    residual = {
        "none": None,
        "whole": residual,
        "pooled": residual.mean(dim=(2, 3), keepdim=True),
        "of another dtype": residual.double(),
    }[form]
    before = [one.clone() for one in (h, skip)]
    with torch.set_grad_enabled(grad):
        joined = cat_skip(h.requires_grad_(grad), skip, residual)
    assert torch.equal(joined, torch.cat([h, skip if residual is None else skip + residual], dim=1))
    assert joined.is_contiguous(memory_format=layout)
    assert joined.requires_grad == grad
    assert all(torch.equal(one, other) for one, other in zip((h, skip), before, strict=True))
