"""The backend for GPUs: who gets it, and on a GPU that it gives the reference's numbers in less memory."""

import logging

import pytest
import torch
from torch import nn

from quantize.arithmetic import sqnr_db
from quantize.backends import choose_backend, cuda, make_backend
from quantize.layers import quantize_layer
from quantize.model import quantize_
from quantize.schemes import SCHEMES, LayerSpec
from quantize.selection import default_selection, make_plan
from quantize.timesteps import TimestepGroups, current_group, follow_timesteps, group_on_device
from tests.quantize.small_layers import LAYERS, layer_and_input, ranges_for

CARD = torch.device("cuda", 0)
# Sums of fp8 are not float32's, and the reference rounds decoded weights to half precision.
LIKE_THE_REFERENCE_DB = {torch.float32: 60, torch.float16: 55, torch.bfloat16: 38}
MEMORY_SHARE = 0.55  # of what the same network takes in fp16
on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def gpu(monkeypatch):
    """A function that makes torch tell of a GPU of some capability, None for no GPU."""

    def tell(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        cuda.lacks.cache_clear()
        cuda.has_fp8.cache_clear()

    yield tell
    cuda.lacks.cache_clear()
    cuda.has_fp8.cache_clear()


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0)])
def test_a_gpu_of_today_gets_its_backend(gpu, capability):
    gpu(capability)
    assert choose_backend(CARD) == "cuda"
    layer, _ = layer_and_input("conv 3x3")
    for scheme, rule in SCHEMES.items():
        own = isinstance(make_backend("cuda", LayerSpec.of(layer, scheme)), cuda.TensorCores)
        assert own == (rule.weights != "fp8" or capability >= (8, 9))


def test_embeddings_stay_with_the_reference(gpu):
    gpu((9, 0))
    assert not cuda.TensorCores.computes(LayerSpec.of(nn.Embedding(9, 8), "int8_weight"))


def test_a_gpu_that_is_too_old_says_so_once_and_gets_the_reference(gpu, caplog):
    gpu((7, 5))
    with caplog.at_level(logging.WARNING):
        assert [choose_backend(CARD) for _ in range(3)] == ["reference"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "this GPU's compute capability is 7.5 and 8.0 is needed: "
        "quantized layers are computed by the slow reference"
    ]
    with pytest.raises(
        ValueError, match="backend 'cuda' cannot run here: this GPU's compute capability is 7.5"
    ):
        make_backend("cuda", LayerSpec.of(nn.Linear(32, 32), "int8_weight"))


def test_without_triton_a_gpu_gets_the_reference(gpu, monkeypatch):
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    gpu((9, 0))
    assert choose_backend(CARD) == "reference"
    assert cuda.lacks(CARD) == "Triton is not installed"


def test_without_a_gpu_its_backend_is_refused(gpu):
    gpu(None)
    with pytest.raises(ValueError, match="there is no CUDA GPU; use 'reference'"):
        make_backend("cuda", LayerSpec.of(nn.Linear(32, 32), "int8_weight"))


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("timestep", [0.0, 199.5, 200.0, 999.0])
@pytest.mark.parametrize("edges", [(), (200.0,), (200.0, 400.0, 600.5)])
def test_a_gpu_finds_the_group_that_the_host_finds(timestep, edges):
    groups, seen = TimestepGroups(edges), []

    class Step(nn.Module):
        def forward(self, timesteps):
            seen.append((group_on_device(), current_group()))

    step = Step()
    follow_timesteps(step, groups, "timesteps")
    step(torch.full((2,), timestep).as_subclass(OnGpu))
    ((there, here),) = seen
    assert there.dtype == torch.int32
    assert there.tolist() == [groups.of(timestep)] == [here]


def test_on_a_gpu_a_mixed_batch_is_refused_as_soon_as_somebody_reads_its_group():
    class Step(nn.Module):
        def forward(self, timesteps):
            return current_group()

    step = Step()
    follow_timesteps(step, TimestepGroups((500.0,)), "timesteps")
    with pytest.raises(ValueError, match="mixes groups"):
        step(torch.tensor([1, 999]).as_subclass(OnGpu))


class TestOnAGpu:
    """What no interpreter can tell."""

    pytestmark = on_a_gpu

    @pytest.mark.parametrize("dtype", LIKE_THE_REFERENCE_DB)
    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("name", LAYERS)
    def test_the_backend_gives_what_the_reference_gives(self, name, scheme, dtype):
        if SCHEMES[scheme].weights == "fp8" and not cuda.has_fp8():
            pytest.skip("this GPU does not multiply fp8")
        layer, x = layer_and_input(name)
        made = [quantize_layer(layer, scheme, ranges_for(x, SCHEMES[scheme])) for _ in range(2)]
        reference, other = (one.to(CARD, dtype) for one in made)
        other.bind("cuda")
        x = x.to(CARD, dtype)
        assert sqnr_db(reference(x), other(x)) > LIKE_THE_REFERENCE_DB[dtype]

    @pytest.mark.parametrize("scheme", ["int8_dynamic", "int8_weight", "int4_group"])
    def test_nobody_waits_for_the_gpu(self, scheme):
        layer, x = layer_and_input("conv 3x3")
        quantized = quantize_layer(layer, scheme).to(CARD)
        quantized.bind("cuda")
        x = x.to(CARD)
        quantized(x)  # kernels are chosen in the first call
        torch.cuda.set_sync_debug_mode("error")
        try:
            quantized(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize("scheme", ["int8_weight", "int8_dynamic"])
    def test_the_memory_is_little_more_than_half_of_what_fp16_takes(self, scheme):
        def network():
            return nn.Sequential(*(nn.Conv2d(1280, 1280, 3, padding=1) for _ in range(12)))

        def peak(model):
            model = model.to(CARD, torch.float16).requires_grad_(False)
            x = torch.randn(2, 1280, 8, 8, device=CARD, dtype=torch.float16)
            model(x)
            torch.cuda.reset_peak_memory_stats()
            model(x)
            return torch.cuda.max_memory_allocated()

        before = peak(network())
        torch.cuda.empty_cache()
        model = network()
        quantize_(model, make_plan(model, default_selection(scheme)), clip="max")
        model.to(CARD)
        for layer in model:
            layer.bind("cuda")
        assert peak(model) <= MEMORY_SHARE * before
