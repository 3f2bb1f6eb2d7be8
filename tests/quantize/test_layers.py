"""Quantized layers answer as their formulas say, whatever their geometry, and keep their tensors' types."""

import copy

import pytest
import torch
from torch import nn

from quantize.activations import dequantize_uint8, qparams_of, quantize_uint8, range_of
from quantize.arithmetic import dequantize_channels, quantize_int8, sqnr_db
from quantize.layers import QuantConv2d, QuantLinear, empty_layer, quantize_layer
from quantize.schemes import SCHEMES, WEIGHT_FORMATS, WEIGHTS_ONLY, LayerSpec, check_device, get_scheme
from tests.quantize.small_layers import LAYERS, layer_and_input, ranges_for, timestep_group

every_layer = pytest.mark.parametrize("name", LAYERS)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
EXACT = 1e-5  # float32 sums in another order


@every_scheme
@every_layer
def test_a_quantized_layer_keeps_its_signal(name, scheme):
    layer, x = layer_and_input(name)
    quantized = quantize_layer(layer, scheme, ranges_for(x, SCHEMES[scheme]))
    assert isinstance(quantized, QuantLinear if isinstance(layer, nn.Linear) else QuantConv2d)
    # 2 dB: these outputs are few, so their noise scatters about what long sums have
    assert sqnr_db(layer(x), quantized(x)) > SCHEMES[scheme].expected_sqnr_db - 2
    assert quantized(x).shape == layer(x).shape


@every_scheme
def test_a_large_layer_keeps_what_its_scheme_promises(scheme):
    layer, x = nn.Linear(512, 256), torch.randn(256, 512, generator=torch.Generator().manual_seed(1))
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    quantized = quantize_layer(layer, scheme, ranges_for(x, SCHEMES[scheme]))
    assert sqnr_db(layer(x), quantized(x)) > SCHEMES[scheme].expected_sqnr_db


@every_layer
def test_int8_inputs_give_what_the_decoded_numbers_give_in_double(name):
    layer, x = layer_and_input(name)
    quantized = quantize_layer(layer, "int8_dynamic")
    qparams = qparams_of(*range_of(x))
    seen = dequantize_uint8(quantize_uint8(x, qparams), qparams).double()
    double = copy.deepcopy(layer).double()
    double.weight.data = dequantize_channels(*quantize_int8(layer.weight)).double()
    assert torch.allclose(quantized(x).double(), double(seen), rtol=EXACT, atol=EXACT)


@every_scheme
def test_weights_take_the_bytes_of_their_codes(scheme):
    layer = nn.Conv2d(64, 32, 3, padding=1)
    quantized = quantize_layer(layer, scheme, [(-1.0, 1.0)])
    bits = {"int8": 8, "fp8": 8, "int4": 4}[SCHEMES[scheme].weights]
    assert quantized.qweight.nbytes == layer.weight.numel() * bits // 8
    assert quantized.scale.nbytes <= layer.weight.numel() * 2 // 32
    assert not any(p.numel() > layer.out_channels for p in quantized.parameters())


@every_scheme
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_for_the_inputs_and_the_bias(scheme, dtype):
    layer, x = layer_and_input("conv 3x3")
    quantized = quantize_layer(layer, scheme, ranges_for(x, SCHEMES[scheme]))
    types = {name: tensor.dtype for name, tensor in quantized.named_buffers()}
    quantized.to(dtype)
    assert {name: tensor.dtype for name, tensor in quantized.named_buffers()} == types
    assert quantized.bias.dtype == dtype
    out = quantized(x.to(dtype))
    assert out.dtype == dtype
    assert sqnr_db(layer(x), out) > min(SCHEMES[scheme].expected_sqnr_db, 38) - 3


@every_scheme
def test_autocast_changes_nothing(scheme):
    layer, x = layer_and_input("linear")
    quantized = quantize_layer(layer, scheme, ranges_for(x, SCHEMES[scheme]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = quantized(x)
    assert torch.equal(inside, quantized(x))


@every_scheme
def test_a_layer_saves_and_loads_bit_for_bit(scheme):
    layer, x = layer_and_input("conv of two groups")
    quantized = quantize_layer(layer, scheme, ranges_for(x, SCHEMES[scheme]))
    other = empty_layer(quantized.spec)
    other.load_state_dict(quantized.state_dict())
    assert torch.equal(other(x), quantized(x))


def test_a_static_layer_takes_the_range_of_its_group_of_timesteps():
    layer, x = layer_and_input("linear")
    quantized = quantize_layer(layer, "int8_static", [range_of(x), (-100.0, 100.0), range_of(x)])
    outside = quantized(x)
    with timestep_group(1):
        assert torch.equal(quantized(x), outside)
    with timestep_group(0):
        assert sqnr_db(outside, quantized(x)) < 20  # steps about 30 times as coarse


def test_a_static_layer_without_timesteps_has_one_range_in_every_group():
    layer, x = layer_and_input("linear")
    quantized = quantize_layer(layer, "int8_static", [range_of(x)])
    with timestep_group(3):
        assert torch.equal(quantized(x), quantized(x))


@every_scheme
@every_layer
def test_no_input_gives_no_output(name, scheme):
    layer, x = layer_and_input(name)
    if x.ndim == 1:
        return
    quantized = quantize_layer(layer, scheme, ranges_for(x, SCHEMES[scheme]))
    assert quantized(x[:0]).shape == layer(x[:0]).shape


@pytest.mark.parametrize("scheme", [name for name, one in SCHEMES.items() if one.inputs == "dynamic"])
def test_an_input_with_nan_is_refused(scheme):
    layer, x = layer_and_input("linear")
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="only numbers can be quantized"):
        quantize_layer(layer, scheme)(x)


TABLE_SCHEMES = [name for name, one in SCHEMES.items() if one.inputs == "float"]


@pytest.mark.parametrize("scheme", TABLE_SCHEMES)
@pytest.mark.parametrize("ids", [[3, 0, 3], [[1, 2], [4, 4]], []])
def test_a_quantized_table_gives_its_decoded_rows(scheme, ids):
    table = nn.Embedding(5, 96)
    quantized, ids = quantize_layer(table, scheme), torch.tensor(ids, dtype=torch.long)
    whole = quantized.spec.format.dequantize(quantized.qweight, quantized.scale, (5, 96))
    assert torch.equal(quantized(ids), whole[ids])
    assert sqnr_db(table.weight, whole) > SCHEMES[scheme].expected_sqnr_db - 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_rows_of_a_table_take_the_dtype_of_the_module(dtype):
    quantized = quantize_layer(nn.Embedding(5, 96), "int8_weight")
    assert quantized(torch.tensor([1])).dtype == torch.float32
    assert quantized.to(dtype)(torch.tensor([1])).dtype == dtype
    assert quantize_layer(nn.Embedding(5, 96, dtype=dtype), "int8_weight")(torch.tensor([1])).dtype == dtype
    assert quantized.scale.dtype == torch.float32


@pytest.mark.parametrize("scheme", sorted(SCHEMES.keys() - set(TABLE_SCHEMES)))
def test_a_table_has_no_inputs_to_quantize(scheme):
    with pytest.raises(ValueError, match=f"Embedding has no inputs.*use {WEIGHTS_ONLY[scheme]}"):
        quantize_layer(nn.Embedding(5, 96), scheme, [(0.0, 1.0)])


def test_static_inputs_need_ranges():
    with pytest.raises(ValueError, match="calibrate first"):
        quantize_layer(nn.Linear(4, 4), "int8_static")


class Scaled(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv1d(4, 4, 3), "only nn.Linear, nn.Conv2d and nn.Embedding"),
        (Scaled(4, 4), "only nn.Linear, nn.Conv2d and nn.Embedding"),
        (nn.Embedding(4, 4, max_norm=1.0), "normalised as they are looked up"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.Conv2d(4, 4, 2, padding="same"), "same"),
    ],
)
def test_other_layers_are_refused_with_the_reason(layer, reason):
    with pytest.raises(ValueError, match=reason):
        quantize_layer(layer, "int8_weight")


def test_an_unknown_scheme_names_the_known_ones():
    with pytest.raises(ValueError, match=", ".join(SCHEMES)):
        get_scheme("int3")


def test_every_kind_of_weights_and_inputs_is_used():
    assert {one.weights for one in SCHEMES.values()} == set(WEIGHT_FORMATS)
    assert {one.inputs for one in SCHEMES.values()} == {"float", "dynamic", "static"}


@every_scheme
def test_fp8_asks_for_a_gpu_that_has_it(scheme):
    if SCHEMES[scheme].weights == "fp8":
        with pytest.raises(ValueError, match=r"CUDA GPU of compute capability 8\.9"):
            check_device(scheme, torch.device("cpu"))
    else:
        check_device(scheme, torch.device("cpu"))


def test_an_older_gpu_is_refused_by_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(ValueError, match=r"8\.9 or more, this one has 8\.6"):
        check_device("fp8_weight", torch.device("cuda"))


def test_the_spec_lays_out_what_quantizing_makes():
    layer = nn.Conv2d(10, 6, 3)
    for scheme in SCHEMES:
        made = quantize_layer(layer, scheme, [(0.0, 1.0)] * 3)
        spec = LayerSpec.of(layer, scheme, 3)
        assert {n: (tuple(b.shape), b.dtype) for n, b in made.named_buffers()} == spec.shapes()
