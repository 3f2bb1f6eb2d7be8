"""Recordings: one for each kind of call, inputs and outputs apart, the GPU alone."""

import threading

import pytest
import torch
from torch import nn

import generate
from app.batch import load_pipeline
from app.provenance import Provenance
from cldm import cuda_graphs as graphed
from cldm.cuda_graphs import Graphed, use_graphs
from tests.small_models import build, relative_error


class Recorder:
    """Stands for CUDA graphs: a replay reads and writes the same memory each time, as theirs do."""

    def __init__(self):
        self.made = 0

    def __call__(self, function, example):
        self.made += 1
        inputs = [tensor.clone() for tensor in example]

        def replay(given):
            for mine, theirs in zip(inputs, given, strict=True):
                mine.copy_(theirs)
            return function(inputs)

        return replay


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(graphed, "record_graph", one := Recorder())
    return one


def add(x, more=(), *, scale=1.0):
    return {"sum": [scale * (x + sum(more))]}


def test_calls_are_told_apart_by_shapes_types_and_whatever_is_no_tensor(recorder):
    graph = Graphed(add)
    x = torch.arange(3.0)
    calls = [
        ((x,), {}), ((x, [x, x]), {}), ((x, [x]), {}), ((x[:2],), {}), ((x,), {"scale": 2.0}),
        ((x.double(),), {}),
    ]  # fmt: skip
    for made, (args, kwargs) in enumerate(calls, 1):
        for _ in range(2):
            (got,), (expected,) = graph(*args, **kwargs)["sum"], add(*args, **kwargs)["sum"]
            assert torch.equal(got, expected)
            assert got.dtype == expected.dtype
        assert recorder.made == made
    assert len(graph._recorded) == graphed.KEPT
    graph(*calls[-1][0])
    assert recorder.made == len(calls)
    graph(*calls[0][0])
    assert recorder.made == len(calls) + 1


@pytest.mark.usefixtures("recorder")
def test_new_numbers_reach_an_old_recording():
    graph = Graphed(add)
    for value in (1.0, -4.0):
        x = torch.full((2,), value)
        assert torch.equal(graph(x, [x])["sum"][0], 2 * x)


@pytest.mark.usefixtures("recorder")
def test_threads_take_turns():
    graph, wrong = Graphed(add), []

    def work(value):
        x = torch.full((64,), value)
        for _ in range(50):
            if not torch.equal(graph(x)["sum"][0], x):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(value),)) for value in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_network_on_the_cpu_is_refused_and_stays_as_it_was():
    network = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="need a network on a CUDA device, this one is on cpu"):
        use_graphs([network])
    assert network._compiled_call_impl is None


def test_the_flag_is_refused_where_it_cannot_be_had(capsys):
    given = ["--image", "test_imgs/circle.png", "--prompt", "circle", "--cuda-graphs", "--save-memory"]
    assert generate.main(given) == 2
    assert capsys.readouterr().err == (
        "--save-memory moves the weights that --cuda-graphs has to find in place: give one\n"
    )
    with pytest.raises(ValueError, match="this one is on cpu: leave them out"):
        load_pipeline(Provenance(device="cpu", cuda_graphs=True))


def test_calls_of_a_network_go_through_the_recording_with_their_hooks(recorder):
    hooked = []
    network = nn.Linear(2, 2)
    network.register_forward_pre_hook(lambda *_: hooked.append(1))
    network._compiled_call_impl = Graphed(network._call_impl)
    x = torch.randn(3, 2)
    assert torch.equal(network(x), nn.functional.linear(x, network.weight, network.bias))
    assert recorder.made == 1
    assert hooked


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replays_of_a_step_equal_the_step():
    model = build().to(torch.cuda.current_device())
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 16, 16, generator=noise).to(model.device)
    hint = torch.rand(2, 3, 128, 128, generator=noise).to(model.device)
    text = torch.randn(2, 77, 32, generator=noise).to(model.device)
    cond = {"c_concat": [hint], "c_crossattn": [text]}
    times = [torch.full((2,), t, device=model.device) for t in (801, 1)]
    with torch.inference_mode():
        expected = [model.apply_model(scale * x, t, cond) for t in times for scale in (1, 2)]
        use_graphs([model.model.diffusion_model, model.control_model])
        got = [model.apply_model(scale * x, t, cond) for t in times for scale in (1, 2)]
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(got, expected, strict=True))
