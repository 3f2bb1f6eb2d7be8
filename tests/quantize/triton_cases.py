"""The kernels for GPUs against the reference, on Triton's interpreter; `test_triton.py` runs this file.

It needs TRITON_INTERPRET=1 before Triton is imported, so it has a process of its own.
"""

import math
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cldm.compressed.quantized import fuse_cuda
from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.layers import ResBlock
from quantize.activations import Quantized, qparams_of, quantize_uint8, range_of
from quantize.arithmetic import FP8_PEAK, sqnr_db, to_fp8
from quantize.backends import cuda
from quantize.calibration.ranges import watch
from quantize.fused.norms import CudaGroupNorm, CudaLayerNorm
from quantize.layers import quantize_layer
from quantize.model import quantize_
from quantize.schemes import SCHEMES
from quantize.selection import Rule, Selection, make_plan
from quantize.timesteps import TimestepGroups, follow_timesteps
from quantize.triton import activations, products
from tests.quantize.small_layers import ranges_for, timestep_group
from tests.small_models import randomize

FUSED_DB = 45  # a value on the edge between two levels may get either, and the noise of a level is some 35 dB
ROUNDING_DB = 110  # float32 sums in another order
HALF_DB = {torch.float16: 60, torch.bfloat16: 40}  # the reference rounds the weights too, kernels do not
# Tiles of the interpreter are 64 rows, 16 columns, 32 deep: nothing below is a multiple of all three.
LAYERS = {
    "linear": (lambda: nn.Linear(72, 20), (3, 23, 72)),
    "linear of one axis": (lambda: nn.Linear(40, 17, bias=False), (40,)),
    "linear of an odd width": (lambda: nn.Linear(37, 11), (4, 37)),
    "conv 3x3": (lambda: nn.Conv2d(40, 17, 3, padding=1), (2, 40, 6, 7)),
    "conv 1x1": (lambda: nn.Conv2d(33, 20, 1, bias=False), (2, 33, 5, 7)),
    "conv 1x1 of stride 2": (lambda: nn.Conv2d(8, 6, 1, stride=2), (1, 8, 5, 7)),
    "conv of stride 2": (lambda: nn.Conv2d(8, 18, 3, stride=2, padding=1), (1, 8, 9, 10)),
    "conv of two groups": (lambda: nn.Conv2d(12, 10, 3, padding=1, groups=2), (1, 12, 5, 4)),
    "depthwise conv": (lambda: nn.Conv2d(3, 3, 5, padding=2, groups=3), (1, 3, 6, 5)),
    "conv dilated and lopsided": (
        lambda: nn.Conv2d(9, 7, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(2, 1)),
        (2, 9, 8, 7),
    ),
}


@pytest.fixture(autouse=True)
def _gpu(monkeypatch):
    """The interpreter stands for a GPU that has everything."""
    assert os.environ.get("TRITON_INTERPRET") == "1", "run test_triton.py, which sets it"
    monkeypatch.setattr(cuda.TensorCores, "lacks", staticmethod(lambda device=None: None))
    monkeypatch.setattr(cuda, "has_fp8", lambda: True)


def draw(shape, seed=0, shift=0.3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + shift


def on_fp8(x):
    """x on e4m3's own numbers: the interpreter rounds others to fp8 otherwise than GPUs and torch do."""
    return to_fp8(x, x.abs().max() / FP8_PEAK).float() / 64


def layer_of(make):
    layer = make()
    with torch.no_grad():
        layer.weight.copy_(draw(layer.weight.shape, 1, 0.0) / layer.weight[0].numel() ** 0.5)
    return layer


def pair(layer, scheme, x=None):
    """The layer on the reference and on the kernels."""
    made = [quantize_layer(layer, scheme, ranges_for(x, SCHEMES[scheme])) for _ in range(2)]
    made[1].bind("cuda")
    return made


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", LAYERS)
def test_kernels_give_what_the_reference_gives(name, scheme):
    make, shape = LAYERS[name]
    x = draw(shape)
    x = on_fp8(x) if scheme == "fp8_dynamic" else x
    reference, other = pair(layer_of(make), scheme, x)
    out, expected = other(x), reference(x)
    assert out.shape == expected.shape
    assert out.dtype == expected.dtype
    assert sqnr_db(expected, out) > ROUNDING_DB


@pytest.mark.parametrize("scheme", ["int8_dynamic", "int8_static"])
def test_padding_is_zero_and_not_the_lowest_code(scheme):
    """Ones all around: a border pixel sees fewer of them, by exactly as many as lie outside."""
    conv = nn.Conv2d(3, 2, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.full((1, 3, 4, 4), 2.0)
    x[0, 0, 1, 1] = -2.0
    _, other = pair(conv, scheme, x)
    assert torch.allclose(other(x), conv(x), rtol=2e-2)
    assert other(x)[0, 0, 3, 3].item() == pytest.approx(4 * 3 * 2.0, rel=2e-2)


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [(name, torch.float16) for name in ("int8_weight", "int8_dynamic", "int4_group", "fp8_weight")]
    + [("int8_dynamic", torch.bfloat16)],  # the interpreter cannot multiply bfloat16
)
def test_half_precision_goes_in_and_comes_out(scheme, dtype):
    make, shape = LAYERS["linear"]
    x = draw(shape).to(dtype)
    reference, other = (one.to(dtype) for one in pair(layer_of(make), scheme, x))
    got, expected = other(x), reference(x)
    assert got.dtype == dtype
    assert sqnr_db(expected, got) > HALF_DB[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "x",
    [draw(5000), draw(9000).abs() + 1, -draw(3), torch.zeros(70), torch.full((70,), -7.0), draw(80) * 1e-6,
     torch.arange(-300, 301) / 2.0],
    ids=["both signs", "positive", "three", "zeros", "constant", "small", "halves"],
)  # fmt: skip
def test_bytes_are_the_references_less_128(x, dtype):
    x = x.to(dtype)
    qparams = qparams_of(*range_of(x))
    values, (scale, zero) = activations.quantize(x)
    assert scale.item() == torch.tensor(qparams.scale).item()
    assert zero.item() == qparams.zero - 128
    assert torch.equal(values.int() + 128, quantize_uint8(x, qparams).int())


def test_bytes_by_given_ranges_stop_at_the_ends():
    x = draw(300) * 5
    ranges = activations.Ranges(torch.tensor([1.0, 0.01]), torch.tensor([0, 131], dtype=torch.int32))
    for at, qparams in ((None, (1.0, 0)), (torch.tensor([1], dtype=torch.int32), (0.01, 131))):
        values, got = activations.quantize(x, ranges._replace(at=at))
        assert got.zero.item() == qparams[1] - 128
        scale = ranges.scale[0 if at is None else 1].item()
        expected = quantize_uint8(x, qparams_of(-1, 1)._replace(scale=scale, zero=qparams[1]))
        assert torch.equal(values.int() + 128, expected.int())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scheme", ["int8_dynamic", "fp8_dynamic"])
def test_what_is_no_number_makes_the_output_none(scheme, bad):
    x = draw((4, 40))
    x[2, 7] = bad
    _, other = pair(layer_of(lambda: nn.Linear(40, 8)), scheme)
    assert torch.isnan(other(x)).all()


def test_any_memory_order_gives_the_same():
    make, shape = LAYERS["conv 3x3"]
    x = draw(shape)
    reference, other = pair(layer_of(make), "int8_dynamic")
    wide = torch.stack([x, x], dim=-1)[..., 0]
    for given in (x.contiguous(memory_format=torch.channels_last), wide, x.transpose(2, 3).contiguous().mT):
        out = other(given)
        assert torch.equal(out, reference(x))
        assert out.is_contiguous(memory_format=torch.channels_last)
    make, shape = LAYERS["linear of an odd width"]
    reference, other = pair(layer_of(make), "int8_dynamic")
    for given in (draw(shape[::-1]).T, draw((shape[0], 2 * shape[1]))[:, ::2]):
        assert torch.equal(other(given), reference(given))


@pytest.mark.parametrize("rows", [products.LIBRARY_ROWS - 1, products.LIBRARY_ROWS + 3])
def test_long_rows_are_summed_by_the_library(rows, monkeypatch):
    called = []
    real = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda *args: called.append(args) or real(*args))
    layer = layer_of(lambda: nn.Linear(products.LIBRARY_INPUTS, 48))
    x = draw((rows, products.LIBRARY_INPUTS))
    reference, other = pair(layer, "int8_dynamic")
    assert sqnr_db(reference(x), other(x)) > ROUNDING_DB
    assert bool(called) == (rows >= products.LIBRARY_ROWS)


def test_ranges_follow_the_timesteps_without_being_read(monkeypatch):
    layer = layer_of(lambda: nn.Linear(40, 8))
    x = draw((3, 40))
    ranges = [range_of(x), (-9.0, 2.0), (0.0, 5.0)]
    reference, other = (quantize_layer(layer, "int8_static", ranges) for _ in range(2))
    other.bind("cuda")

    class Step(nn.Module):
        def forward(self, x, timesteps):
            return other(x)

    step = Step()
    follow_timesteps(step, TimestepGroups((500.0,)), "timesteps")
    for group, timestep in ((0, 499), (1, 500)):
        with timestep_group(group):
            expected = reference(x)
            assert torch.equal(other(x), expected)
        timesteps = torch.tensor([timestep]).as_subclass(OnGpu)
        assert torch.equal(step(x, timesteps), expected)


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU, and that nobody may wait for."""

    @property
    def is_cuda(self):
        return True

    def item(self):
        raise AssertionError("the host waited for the GPU")


def test_bytes_of_another_maker_are_taken():
    make, shape = LAYERS["conv 3x3"]
    x = draw(shape)
    qparams = qparams_of(*range_of(x))
    reference, other = pair(layer_of(make), "int8_dynamic")
    assert torch.equal(other(Quantized(quantize_uint8(x, qparams), qparams)), reference(x))


def test_int8_layers_can_still_be_saved_and_int4_ones_say_that_they_cannot():
    make, shape = LAYERS["conv 3x3"]
    reference, other = pair(layer_of(make), "int8_weight")
    other(draw(shape))
    saved = other.state_dict()
    assert saved.keys() == reference.state_dict().keys()
    assert torch.equal(saved["qweight"], reference.qweight)
    _, packed = pair(layer_of(make), "int4_group")
    packed(draw(shape))
    assert packed.qweight is None
    with pytest.raises(ValueError, match="save before the first call"):
        packed.state_dict()


def test_an_empty_input_gives_an_empty_output():
    make, shape = LAYERS["conv of stride 2"]
    reference, other = pair(layer_of(make), "int8_dynamic")
    x = draw(shape)[:0]
    assert other(x).shape == reference(x).shape


def silu_ends(low, high):
    """Of SiLU over the whole interval, which turns at its least value."""
    values = F.silu(torch.linspace(low, high, 100_001, dtype=torch.float64))
    return values.min().item(), values.max().item()


def norm_of(norm, seed=0):
    with torch.no_grad():
        norm.weight.copy_(draw(norm.weight.shape, seed, 1.0))
        norm.bias.copy_(draw(norm.bias.shape, seed + 1, 0.0))
    return norm.requires_grad_(False)


def check_bytes(got, expected, qparams):
    """Codes of `expected`, but for values on the edge between two levels, by nearly that qparams."""
    values, (scale, zero) = got
    assert values.dtype == torch.int8
    assert scale.item() == pytest.approx(qparams.scale, rel=1e-5)
    assert zero.item() == qparams.zero - 128
    apart = (values.int() + 128 - quantize_uint8(expected, qparams).int()).abs()
    assert apart.max() <= 1
    assert apart.float().mean() < 1e-2


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 20, 9, 7), 2), ((1, 33, 11, 9), 11), ((1, 64, 20, 19), 1), ((2, 8, 1, 1), 4)],
    ids=str,
)
def test_a_group_norm_writes_bytes(shape, groups, silu):
    norm = norm_of(nn.GroupNorm(groups, shape[1]))
    x, added = draw(shape, 2, 30.0), draw(shape[:2], 3)  # a mean far from zero
    plain = F.group_norm(
        x.double() + added[:, :, None, None], groups, norm.weight.double(), norm.bias.double()
    )
    ends = plain.min().item(), plain.max().item()
    expected = (F.silu(plain) if silu else plain).float()
    qparams = qparams_of(*(silu_ends(*ends) if silu else ends))
    got = activations.group_norm_quantize(norm, x, None, silu=silu, added=added)
    assert got.values.is_contiguous(memory_format=torch.channels_last)
    check_bytes(got, expected, qparams)
    given = qparams_of(-2.0, 1.0)
    ranges = activations.Ranges(torch.tensor([given.scale]), torch.tensor([given.zero], dtype=torch.int32))
    check_bytes(activations.group_norm_quantize(norm, x, ranges, silu=silu, added=added), expected, given)


def test_a_layer_norm_writes_bytes():
    norm, x = norm_of(nn.LayerNorm(40)), draw((2, 7, 40), 2, 30.0)
    expected = F.layer_norm(x.double(), (40,), norm.weight.double(), norm.bias.double()).float()
    qparams = qparams_of(*range_of(expected))
    check_bytes(activations.layer_norm_quantize(norm, x, None), expected, qparams)
    given = qparams_of(-2.0, 1.0)
    ranges = activations.Ranges(torch.tensor([given.scale]), torch.tensor([given.zero], dtype=torch.int32))
    check_bytes(activations.layer_norm_quantize(norm, x, ranges), expected, given)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("silu", [False, True])
def test_a_norm_of_what_is_no_number_has_no_scale(bad, silu):
    x = draw((2, 8, 3, 3))
    x[1, 5, 1, 1] = bad
    got = activations.group_norm_quantize(norm_of(nn.GroupNorm(4, 8)), x, None, silu=silu)
    assert math.isnan(got.qparams.scale)
    rows = activations.layer_norm_quantize(norm_of(nn.LayerNorm(3)), x, None)
    assert math.isnan(rows.qparams.scale)


@pytest.mark.parametrize("scheme", ["int8_dynamic", "int8_static"])
def test_fused_blocks_answer_as_the_blocks(scheme):
    """Bytes come from the norms then, and no layer makes its own."""
    block = ResBlock(16, 8, 24, groups=4).eval()
    attention = BasicTransformerBlock(16, 12, heads=2, dim_head=8).eval()
    inputs = {
        block: (draw((2, 16, 4, 5)), draw((2, 8), 1)),
        attention: (draw((2, 9, 16)), draw((2, 3, 12), 1)),
    }
    for module, given in inputs.items():
        randomize(module).requires_grad_(False)
        plan = make_plan(module, Selection((Rule("*", scheme),), min_weights=1))
        with watch(module, plan) as calibration:
            module(*given)
        ranges = calibration.all_ranges(plan) if scheme == "int8_static" else None
        quantize_(module, plan, ranges, backend="cuda")
        expected = module(*given)
        fuse_cuda(module)
        norms = [type(one) for one in module.modules() if isinstance(one, nn.GroupNorm | nn.LayerNorm)]
        assert set(norms) <= {CudaGroupNorm, CudaLayerNorm}
        assert sqnr_db(expected, module(*given)) > FUSED_DB
