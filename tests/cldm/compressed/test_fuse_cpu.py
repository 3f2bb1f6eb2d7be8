"""The engine's blocks compute what their layers compute apart, and texts are not taken for each other."""

import copy
import statistics
import threading

import pytest
import torch

from cldm.compressed import fused_blocks as engine_blocks
from cldm.compressed.fused_blocks import (
    FusedAttention,
    FusedResBlock,
    FusedResnetBlock,
    FusedUpsample,
    QuantGEGLU,
)
from cldm.compressed.quantized import fuse_cpu
from ldm.modules.attention import BasicTransformerBlock, SpatialTransformer, slice_attention
from ldm.modules.layers import ResBlock, Upsample
from ldm.modules.vae import AttnBlock, ResnetBlock
from quantize import native
from quantize.activations import Quantized
from quantize.arithmetic import sqnr_db
from quantize.calibration.ranges import watch
from quantize.cpu import attention
from quantize.fused.convolutions import Bf16Conv2d
from quantize.fused.norms import GroupNormSiLU, QuantGroupNorm, QuantLayerNorm
from quantize.model import bind, quantize_, quantized_layers
from quantize.schemes import SCHEMES
from quantize.selection import Rule, default_selection, make_plan
from tests.quantize.small_layers import timestep_group
from tests.small_models import SD15, SD21, build

# A number on the edge between two bytes may get either: of thousands of bytes one flips, one step of 255.
FLIPS_DB, ROUNDING_DB = 40, 100
# Behind a flip every number differs a little, so that others flip: of two networks that round alike, the
# difference grows up to what bytes cost in any case, some 25 dB here.
NETWORK_DB = 22
UNETS = {"SD 1.5": SD15, "SD 2.1": SD21}
BLOCKS = (ResBlock, BasicTransformerBlock, SpatialTransformer, Upsample, ResnetBlock, AttnBlock)
BYTES = [name for name, rule in SCHEMES.items() if rule.weights == "int8" and rule.inputs != "float"]
SIZES = [(1, 8, 8), (2, 8, 8), (2, 12, 4)]


def inputs(batch=2, height=8, width=8, seed=0):
    """Latents, timesteps, text and control picture."""
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 4, height, width, generator=noise)
    text = torch.randn(batch, 7, 32, generator=noise)
    hint = torch.rand(batch, 3, 8 * height, 8 * width, generator=noise)
    return x, torch.tensor([500] * batch), text, hint


def exact_attention(q, k, v, qparams):
    """Numbers, which the layer behind brings to bytes itself."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def rows_of(x):
    """Of numbers, or of bytes."""
    return len(x.values if isinstance(x, Quantized) else x)


def step(model, x, t, text, hint):
    """A denoising step, and pictures of what comes out."""
    with torch.no_grad():
        eps = model.apply_model(x, t, {"c_crossattn": [text], "c_concat": [hint]})
        return eps, model.decode_first_stage(eps)


@pytest.fixture(scope="module", params=[(unet, scheme) for unet in UNETS for scheme in BYTES], ids=str)
def pair(request):
    """A quantized model, its weights not packed yet, for tests to copy."""
    unet, scheme = request.param
    return made(unet, scheme)


def made(unet="SD 1.5", scheme="int8_static", *rules):
    model = build(UNETS[unet]).requires_grad_(False)
    plan = make_plan(model, default_selection(scheme, decoder=True, extra=rules))
    with watch(model, plan) as calibration:
        step(model, *inputs(seed=1))
        model.encode_first_stage(torch.rand(1, 3, 64, 64))
    model.kind = unet
    quantize_(model, plan, calibration.all_ranges(plan), backend="reference")
    return model


def both(model, monkeypatch=None, backend=None):
    """The model as its layers compute it, and fused; on exact attention where there is a monkeypatch."""
    plain, fused = copy.deepcopy(model), copy.deepcopy(model)
    for one in (plain, fused):
        bind(one, backend)
    fuse_cpu(fused)
    if monkeypatch:
        for name in ("attend_int8", "attend_bf16"):
            monkeypatch.setattr(engine_blocks, name, exact_attention)
    return plain, fused


def near(plain, fused, *given):
    """Whether two models give the same step, as far as networks of flips can."""
    pairs = zip(step(plain, *given), step(fused, *given), strict=True)
    return all(one.shape == other.shape and sqnr_db(one, other) > NETWORK_DB for one, other in pairs)


@pytest.mark.parametrize("kernels", [True, False], ids=["native", "plain torch"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_each_block_computes_what_its_layers_compute_apart(pair, size, kernels, monkeypatch):
    plain, fused = both(pair, monkeypatch)
    if not kernels:
        monkeypatch.setattr(native, "function", lambda *_: None)
    calls = {}
    for name, block in fused.named_modules():
        if isinstance(block, BLOCKS):
            plain.get_submodule(name).register_forward_hook(
                lambda _, args, out, name=name: calls.update({name: (args, out)})
            )
    step(plain, *inputs(*size))
    found = []
    with torch.no_grad():
        for name, (args, out) in calls.items():
            got = fused.get_submodule(name)(*args)
            assert got.shape == out.shape
            found.append(sqnr_db(out, got))
    assert min(found) > FLIPS_DB
    assert statistics.median(found) > ROUNDING_DB


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_engine_is_no_farther_from_the_float_model_than_its_layers(pair, size):
    exact = build(UNETS[pair.kind])
    plain, fused = both(pair)
    drawn = [inputs(*size, seed=seed) for seed in range(3)]  # in one alone flips make up to 2 dB either way
    answers = []
    for model in (exact, plain, fused):
        steps = zip(*(step(model, *given) for given in drawn), strict=True)
        answers.append([torch.stack(outs) for outs in steps])
    for truth, one, other in zip(*answers, strict=True):
        assert sqnr_db(truth, other) > sqnr_db(truth, one) - 2


@pytest.mark.parametrize("batch", [1, 2])
def test_a_guided_batch_is_computed_once_until_its_texts_come_in(pair, batch):
    _, fused = both(pair)
    x, t, text, hint = (torch.cat([one, one]) for one in inputs(batch))
    text[batch:] += 1
    block = fused.get_submodule("model.diffusion_model.input_blocks.1.1.transformer_blocks.0")
    rows = []
    block.attn1.to_out[0].register_forward_pre_hook(lambda _, args: rows.append(rows_of(args[0])))
    cond = {"c_crossattn": [text], "c_concat": [hint]}
    with torch.no_grad():
        shared = fused.apply_model(x, t, cond)
    with torch.enable_grad():  # where nothing may be shared
        apart = fused.apply_model(x, t, cond)
    assert rows == [batch, 2 * batch]
    assert torch.equal(shared, apart)


def test_without_native_kernels_it_computes_the_same(pair, monkeypatch):
    _, fused = both(pair)
    with_kernels = step(fused, *inputs())
    monkeypatch.setattr(native, "function", lambda *_: None)
    monkeypatch.setattr(attention, "_widest", lambda: 0)  # asked once and kept
    _, fused = both(pair)  # the first one's weights lie as its kernels want them
    for got, expected in zip(step(fused, *inputs()), with_kernels, strict=True):
        assert sqnr_db(expected, got) > NETWORK_DB


def test_every_kind_of_block_is_fused():
    _, fused = both(made())
    kinds = [type(module) for module in fused.modules()]
    for kind in (FusedResBlock, FusedAttention, QuantGEGLU, FusedUpsample, FusedResnetBlock):
        assert kind in kinds
        assert kind.__base__ not in kinds
    for kind in (QuantGroupNorm, QuantLayerNorm, GroupNormSiLU):
        assert kind in kinds
    names = {name for name, module in fused.named_modules() if type(module) is torch.nn.LayerNorm}
    assert all("cond_stage" in name for name in names)  # inputs of the text encoder stay float


@pytest.mark.parametrize("scheme", ["int8_static", "int8_weight"])
def test_zero_convolutions_are_rounded_only_beside_layers_that_are(scheme):
    _, fused = both(made("SD 1.5", scheme))
    branch = fused.control_model
    kinds = {type(conv) for conv, *_ in (*branch.zero_convs, branch.middle_block_out)}
    rounds = scheme == "int8_static" and torch.cpu._is_avx512_bf16_supported()
    assert kinds == {Bf16Conv2d if rounds else torch.nn.Conv2d}


def test_names_and_numbers_stay_those_of_the_unfused_model(pair):
    plain, fused = both(pair)
    before, after = plain.state_dict(), fused.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_fusing_twice_changes_nothing_more():
    _, fused = both(made())
    once = step(fused, *inputs())
    fuse_cpu(fused)
    assert all(torch.equal(a, b) for a, b in zip(step(fused, *inputs()), once, strict=True))


def test_layers_that_read_differently_keep_their_norm_as_it_is(monkeypatch):
    """Their bytes are not the same, so that one look at the norm would not do."""
    plain, fused = both(made("SD 1.5", "int8_static", Rule("*.attn1.to_k", "int8_dynamic")), monkeypatch)
    blocks = [name for name, _ in fused.named_modules() if name.endswith("transformer_blocks.0.norm1")]
    assert blocks
    assert all(type(fused.get_submodule(name)) is torch.nn.LayerNorm for name in blocks)
    assert near(plain, fused, *inputs())


@pytest.mark.parametrize("scheme", ["int8_weight", "int4_group"])
def test_layers_of_float_inputs_are_fed_with_floats(scheme, monkeypatch):
    plain, fused = both(made("SD 1.5", scheme), monkeypatch)
    assert not any(isinstance(module, QuantGroupNorm | QuantLayerNorm) for module in fused.modules())
    assert sqnr_db(step(plain, *inputs())[0], step(fused, *inputs())[0]) > 100  # float sums alone


def test_half_precision_models_are_left_alone():
    model = made().bfloat16()
    fuse_cpu(model)
    assert not any(isinstance(module, FusedResBlock) for module in model.modules())


def test_each_text_has_its_own_keys_and_values(monkeypatch):
    plain, fused = both(made(), monkeypatch)
    x, t, _, hint = inputs()
    texts = [torch.randn(2, n, 32, generator=torch.Generator().manual_seed(n)) for n in (7, 7, 5, 9)]
    for text in (*texts, *reversed(texts)):
        assert near(plain, fused, x, t, text, hint)


def text_layer(model):
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2"
    return model.get_submodule(name)


def test_keys_and_values_of_a_text_are_computed_once(monkeypatch):
    _, fused = both(made())
    layer, calls = text_layer(fused), []
    layer.to_k.register_forward_hook(lambda *_: calls.append(1))
    text, other = torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    for given in (text, other, text.clone(), other):
        layer.keys_and_values(given)
    assert len(calls) == 2
    text += 1  # the same memory, another text
    layer.keys_and_values(text)
    assert len(calls) == 3


def test_keys_follow_the_group_of_timesteps_where_their_ranges_do():
    _, fused = both(made())
    layer, text = text_layer(fused), torch.randn(2, 7, 32)
    ranges = torch.tensor([0.05, 0.02, 0.2]), torch.tensor([128, 128, 128], dtype=torch.int32)
    static = made("SD 1.5", "int8_static", Rule("*.attn2.to_k", "int8_static"))
    layer.to_k = text_layer(static).to_k
    object.__setattr__(layer.to_k.spec, "ranges", 3)
    layer.to_k.in_scale, layer.to_k.in_zero = ranges
    with timestep_group(0):
        early = layer.keys_and_values(text)[0]
    with timestep_group(1):
        late = layer.keys_and_values(text)[0]
    assert not torch.equal(early, late)
    with timestep_group(0):
        assert torch.equal(layer.keys_and_values(text)[0], early)


def test_requests_in_threads_never_get_each_others_text():
    _, fused = both(made())
    layer, wrong = text_layer(fused), []
    texts = [torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    expected = [layer.keys_and_values(text) for text in texts]

    def work(index):
        for _ in range(50):
            got = layer.keys_and_values(texts[index])
            wrong.extend(1 for a, b in zip(got, expected[index], strict=True) if not torch.equal(a, b))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("scheme", BYTES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_and_not_made_numbers_of(scheme, bad):
    _, fused = both(made("SD 1.5", scheme))
    x, t, text, hint = inputs()
    for given in (x, text):
        kept = given.flatten()[3].item()
        given.flatten()[3] = bad
        with pytest.raises(ValueError, match="given NaN or infinity: only numbers can be quantized"):
            step(fused, x, t, text, hint)
        given.flatten()[3] = kept


def test_the_middle_residual_alone_and_pooled_ones_steer_as_before(monkeypatch):
    plain, fused = both(made(), monkeypatch)
    for setting in ("only_mid_control", "global_average_pooling"):
        for model in (plain, fused):
            setattr(model, setting, True)
        assert near(plain, fused, *inputs())


def test_slices_and_tiles_change_nothing_for_the_engine(monkeypatch):
    plain, fused = both(made(), monkeypatch)
    slice_attention(1, fused)
    for model in (plain, fused):
        model.first_stage_model.tile = 8
    assert near(plain, fused, *inputs(1, 12, 16))


def test_activations_lie_channels_last_so_that_positions_are_tokens():
    _, fused = both(made())
    strays = []

    def look(name):
        def hook(_, args):
            x = args[0].values if isinstance(args[0], Quantized) else args[0]
            if not x.is_contiguous(memory_format=torch.channels_last):
                strays.append(name)

        return hook

    for name, layer in quantized_layers(fused):
        if "diffusion_model" in name and layer.spec.geometry is not None:
            layer.register_forward_pre_hook(look(name))
    step(fused, *inputs())
    assert not strays
