"""The loading benchmark writes real checkpoints, and its fingerprint tells weights apart."""

import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bench.memory.load_memory import FORMS, LIMIT, main, parse_args, peak_bytes, to_ckpt, write_random
from checkpoints.load import assign_weights


@pytest.fixture
def model():
    with torch.device("meta"):
        layers = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    layers.register_buffer("step", torch.tensor(3, device="cpu"))
    return layers


def fingerprint(model):
    return sum(p.detach().float().sum(dtype=torch.float64).item() for p in model.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_loads_with_the_announced_fingerprint(model, tmp_path, form):
    stored, loaded, training = FORMS[form]
    path = tmp_path / "w.safetensors"
    expected = write_random(model, path, stored, loaded)
    assert load_file(path)["0.weight"].dtype == stored
    if training:
        to_ckpt(path, path := tmp_path / "w.ckpt")
    assign_weights(model, path, dtype=loaded)
    assert fingerprint(model) == pytest.approx(expected, rel=1e-12)
    assert model.step == 3


def test_another_weight_gives_another_fingerprint(model, tmp_path):
    path = tmp_path / "w.safetensors"
    expected = write_random(model, path, torch.float32, torch.float32)
    assign_weights(model, path)
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-3
    assert fingerprint(model) != pytest.approx(expected, rel=1e-12)


@pytest.mark.skipif("not __import__('pathlib').Path('/proc/self/status').exists()", reason="needs Linux")
def test_the_peak_sees_memory_that_was_given_back():
    before, extra = peak_bytes(), 1 << 27
    # Other tests of this process may have had more memory than it has now: reach beyond their peak.
    block = torch.ones(before - _resident() + extra, dtype=torch.uint8)
    del block
    assert peak_bytes() - before > extra // 2


def _resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_an_unknown_form_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--forms", "onnx"])
    assert "choose from" in capsys.readouterr().err


@pytest.mark.slow
def test_loading_sd15_stays_below_the_limit(tmp_path, capsys):
    assert main(["--folder", str(tmp_path), "--forms", "safetensors"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert float(row[6]) <= LIMIT
