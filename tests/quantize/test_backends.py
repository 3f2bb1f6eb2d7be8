"""Every backend gives the reference's numbers, up to the rounding of sums, for each scheme and geometry."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quantize.activations import qparams_of, range_of
from quantize.arithmetic import sqnr_db
from quantize.backends import BACKENDS, choose_backend, cpu, make_backend
from quantize.layers import QuantLayer, quantize_layer
from quantize.schemes import SCHEMES, LayerSpec
from tests.quantize.small_layers import LAYERS, layer_and_input, ranges_for, timestep_group

ROUNDING_DB = 110  # float32 sums in another order: some 1e-6 of the output
HALF_DB = {torch.float16: 60, torch.bfloat16: 42}  # an output may be rounded to the neighbour
FIRST_TRY = """
import torch
from quantize.layers import QuantLayer, quantize_layer
layers = (torch.nn.Linear(64, 32), torch.randn(2, 64)), (torch.nn.Conv2d(4, 8, 3), torch.randn(1, 4, 6, 6))
for layer, x in layers:
    quantized = quantize_layer(layer, "int8_dynamic")
    quantized.bind("cpu")
    quantized(x)
"""
FIRST_TRY_SECONDS = 120
HERE = sorted(BACKENDS.keys() - {"cuda"})  # that one has test_triton.py and test_cuda.py
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def onednn():
    """The operators answer: tried in a process that may hang, before any other test calls them."""
    if cpu.lacks():
        pytest.skip(cpu.lacks())
    subprocess.run([sys.executable, "-c", FIRST_TRY], check=True, timeout=FIRST_TRY_SECONDS, cwd=ROOT)


def pair(name, scheme, backend):
    """The layer on the reference and on `backend`, and an input."""
    layer, x = layer_and_input(name)
    made = [quantize_layer(layer, scheme, ranges_for(x, SCHEMES[scheme])) for _ in range(2)]
    made[1].bind(backend)
    return *made, x


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_backend_gives_what_the_reference_gives(onednn, name, scheme, backend):
    reference, other, x = pair(name, scheme, backend)
    for given in (x, x * 0.5, -x):
        out = other(given)
        assert out.shape == reference(given).shape
        assert sqnr_db(reference(given), out) > ROUNDING_DB


@pytest.mark.parametrize("scheme", ["int8_dynamic", "int8_static"])
def test_inputs_in_any_memory_order_give_the_same(onednn, scheme):
    reference, other, x = pair("conv 3x3", scheme, "cpu")
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    for given in (x.contiguous(memory_format=torch.channels_last), turned):
        assert sqnr_db(reference(x), other(given)) > ROUNDING_DB
    reference, other, x = pair("linear of three axes, no bias", scheme, "cpu")
    assert sqnr_db(reference(x), other(x.transpose(0, 1).contiguous().transpose(0, 1))) > ROUNDING_DB


@pytest.mark.parametrize("dtype", HALF_DB)
@pytest.mark.parametrize("name", ["linear", "conv 3x3"])
def test_half_precision_goes_in_and_comes_out(onednn, name, dtype):
    reference, other, x = pair(name, "int8_dynamic", "cpu")
    got, expected = other.to(dtype)(x.to(dtype)), reference.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    assert sqnr_db(expected, got) > HALF_DB[dtype]


@pytest.mark.parametrize("name", ["linear", "conv 3x3"])
def test_one_packing_serves_all_groups_of_timesteps(onednn, name):
    layer, x = layer_and_input(name)
    ranges = [range_of(x), (-9.0, 2.0), (0.0, 5.0)]
    reference, other = (quantize_layer(layer, "int8_static", ranges) for _ in range(2))
    other.bind("cpu")
    for group in (None, 0, 1, None):
        with timestep_group(group):
            assert sqnr_db(reference(x), other(x)) > ROUNDING_DB


def test_extreme_codes_do_not_saturate(onednn):
    """255 times 127, thousands of times: what goes wrong without VNNI."""
    layer = torch.nn.Linear(4096, 16, bias=False)
    torch.nn.init.constant_(layer.weight, 127 / 128)  # code 127 at a step that needs no rounding
    layer.weight.data[::2] *= -1
    quantized = quantize_layer(layer, "int8_dynamic", clip="max")
    quantized.bind("cpu")
    x = torch.ones(3, 4096)
    assert torch.allclose(quantized(x), layer(x), rtol=1e-5)


def test_packed_weights_replace_the_layers_own(onednn):
    _, other, x = pair("linear", "int8_static", "cpu")
    assert other.state_dict()["qweight"].dtype == torch.int8
    other(x)
    assert other.qweight is None
    with pytest.raises(ValueError, match="save before the first call"):
        other.state_dict()
    with pytest.raises(ValueError, match="load the file again"):
        other.bind("reference")


def test_an_empty_input_gives_an_empty_output(onednn):
    _, other, x = pair("conv of stride 2", "int8_dynamic", "cpu")
    assert other(x[:0]).shape == (0, *other(x).shape[1:])


def test_the_cpu_backend_leaves_float_inputs_to_the_reference():
    layer, _ = layer_and_input("linear")
    for scheme, rule in SCHEMES.items():
        own = cpu.Vnni.computes(LayerSpec.of(layer, scheme))
        assert own == (rule.weights == "int8" and rule.inputs != "float")


def test_an_unknown_backend_names_the_known_ones():
    layer, _ = layer_and_input("linear")
    with pytest.raises(ValueError, match=", ".join(BACKENDS)):
        make_backend("tpu", LayerSpec.of(layer, "int8_static"))


def test_a_cpu_without_the_instructions_says_so_once_and_uses_the_reference(monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    cpu.lacks.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert [choose_backend(torch.device("cpu")) for _ in range(3)] == ["reference"] * 3
        assert [record.getMessage() for record in caplog.records] == [
            "this CPU has no VNNI instructions: int8 layers are computed by the slow reference"
        ]
        with pytest.raises(ValueError, match="no VNNI"):
            make_backend("cpu", LayerSpec.of(layer_and_input("linear")[0], "int8_static"))
    finally:
        cpu.lacks.cache_clear()


def test_the_inputs_reach_onednn_as_unsigned_bytes(onednn, monkeypatch):
    """Signed ones hang on some CPUs."""
    seen = []
    real = QuantLayer.quantize_input
    monkeypatch.setattr(QuantLayer, "quantize_input", lambda *args: seen.append(real(*args)) or seen[-1])
    _, other, x = pair("linear", "int8_dynamic", "cpu")
    other(x)
    assert [quantized.values.dtype for quantized in seen] == [torch.uint8]
    assert qparams_of(*range_of(x)).zero > 0
