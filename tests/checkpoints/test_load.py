"""Weights become a model's parameters: exactly, all or nothing, and never twice in memory."""

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import checkpoints.files.lazy
from checkpoints.load import assign_weights, read_state_dict

KINDS = pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
UNET, CONTROL = "model.diffusion_model.", "control_model."


class Small(nn.Module):
    """The skeleton of a whole model: schedule, control branch, U-Net."""

    def __init__(self, width=8, context=768):
        super().__init__()
        self.register_buffer("betas", torch.linspace(0.1, 0.2, 4, device="cpu"))
        self.control_model = nn.ModuleDict({"input_hint_block": nn.Sequential(nn.Linear(3, width))})
        self.model = nn.Module()
        self.model.diffusion_model = nn.ModuleDict(
            {"out": nn.Linear(width, 4), "mid": nn.Linear(width, width)}
        )
        self.model.diffusion_model["attn2"] = nn.ModuleDict({"to_k": nn.Linear(context, 2, bias=False)})


def meta(**options):
    with torch.device("meta"):
        return Small(**options)


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return {name: torch.randn_like(tensor) for name, tensor in Small().state_dict().items()}


def write(path, state, kind="zip"):
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def part(weights, prefix):
    return {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}


def assert_equal(model, weights):
    state = model.state_dict()
    assert list(state) == list(Small().state_dict())
    assert all(torch.equal(state[name], weights[name]) for name in state)


@KINDS
def test_a_full_file_of_any_kind_fills_a_meta_model_exactly(tmp_path, weights, kind):
    report = assign_weights(model := meta(), write(tmp_path / "full", weights, kind))
    assert_equal(model, weights)
    assert report.assigned == len(weights)
    assert not report.dropped


def test_a_model_that_has_memory_is_filled_too(weights):
    assign_weights(model := Small(), weights)
    assert_equal(model, weights)


@pytest.mark.parametrize("bare", [False, True], ids=["prefixed", "bare"])
def test_a_control_branch_overlays_the_base(tmp_path, weights, bare):
    base = write(tmp_path / "base.ckpt", {name: tensor * 2 for name, tensor in weights.items()})
    branch = part(weights, CONTROL)
    if bare:
        branch = {name[len(CONTROL) :]: tensor for name, tensor in branch.items()}
    assign_weights(model := meta(), base, write(tmp_path / "canny.safetensors", branch, "safetensors"))
    expected = {name: tensor * (1 if name.startswith(CONTROL) else 2) for name, tensor in weights.items()}
    assert_equal(model, expected)


def test_trainability_of_parameters_stays(weights):
    model = meta()
    model.control_model.requires_grad_(False)
    assign_weights(model, weights)
    assert not any(p.requires_grad for p in model.control_model.parameters())
    assert all(p.requires_grad for p in model.model.parameters())


@KINDS
def test_half_precision_files_come_up_to_the_models_dtype_piece_by_piece(
    tmp_path, weights, kind, monkeypatch
):
    monkeypatch.setattr(checkpoints.files.lazy, "PIECE_BYTES", 64)
    half = {name: tensor.half() for name, tensor in weights.items()}
    report = assign_weights(model := meta(), write(tmp_path / "half", half, kind))
    betas = {"betas": torch.linspace(0.1, 0.2, 4)}  # the schedule is not taken from fp16
    assert_equal(model, {name: tensor.float() for name, tensor in half.items()} | betas)
    assert report.own == ("betas",)
    assert any("half precision" in reason for reason in report.dropped)


@pytest.mark.skipif(not hasattr(torch.UntypedStorage, "from_file"), reason="needs mapped storages")
def test_a_conversion_maps_the_file_anew_for_each_piece(tmp_path, weights, monkeypatch):
    path, opened = write(tmp_path / "full.safetensors", weights, "safetensors"), []
    opening = checkpoints.files.lazy.read_tensors
    monkeypatch.setattr(
        checkpoints.files.lazy, "read_tensors", lambda *file: opened.append(file) or opening(*file)
    )
    monkeypatch.setattr(checkpoints.files.lazy, "PIECE_BYTES", 1)
    assign_weights(meta(), path, dtype=torch.float16)
    assert len(opened) == 1 + len(list(Small().parameters()))


def test_the_wanted_dtype_is_for_parameters_and_buffers_keep_theirs(weights):
    assign_weights(model := meta(), weights, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.betas.dtype == torch.float32


def test_a_file_without_the_schedule_keeps_the_models_own(weights):
    del weights["betas"]
    report = assign_weights(model := meta(), weights)
    assert report.own == ("betas",)
    assert torch.equal(model.betas, torch.linspace(0.1, 0.2, 4))


def test_a_training_checkpoint_loads_and_reports_what_it_left_out(tmp_path, weights, caplog):
    averages = {"model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1
                for name, tensor in part(weights, UNET).items()}  # fmt: skip
    saved = {"state_dict": weights | averages, "epoch": 3, "loss": np.float64(0.1), "optimizer_states": []}
    path = write(tmp_path / "last.ckpt", saved)
    with caplog.at_level(logging.INFO, logger="checkpoints.load"):
        report = assign_weights(model := meta(), path)
    assert_equal(model, weights)
    assert sorted(report.dropped.values()) == [3, len(averages)]
    assert "left out 3: entries beside the weights" in caplog.text

    report = assign_weights(model := meta(), path, use_ema=True)
    assert_equal(model, {name: t + name.startswith(UNET) for name, t in weights.items()})
    assert report.averaged == len(averages)
    assert "moving averages" in str(report)


def test_asking_for_moving_averages_that_are_not_there_is_an_error(weights):
    with pytest.raises(ValueError, match="no moving averages .* load without use_ema"):
        assign_weights(meta(), weights, use_ema=True)


def test_one_part_alone_is_taken_from_a_full_file(tmp_path, weights):
    holder = nn.Module()
    with torch.device("meta"):
        holder.control_model = Small().control_model
    assign_weights(holder, write(tmp_path / "full.pth", weights), only=CONTROL)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in holder.state_dict().items())
    with pytest.raises(ValueError, match="base.pth has no control branch"):
        assign_weights(holder, write(tmp_path / "base.pth", part(weights, UNET)), only=CONTROL)


def test_read_state_dict_gives_whole_model_names_and_averages_for_a_models_names(tmp_path, weights):
    bare = {name[len(CONTROL) :]: tensor for name, tensor in part(weights, CONTROL).items()}
    assert set(read_state_dict(write(tmp_path / "bare.pth", bare))) == set(part(weights, CONTROL))
    name = UNET + "out.bias"
    saved = {"state_dict": {name: torch.zeros(4), "model_ema.diffusion_modeloutbias": torch.ones(4)}}
    path = write(tmp_path / "ema.ckpt", saved)
    assert read_state_dict(path)[name].sum() == 0
    assert read_state_dict(path, use_ema=True)[name].sum() == 4


@pytest.mark.parametrize("broken", ["missing", "unknown", "shape", "family"])
def test_a_model_is_untouched_when_weights_do_not_fit(weights, broken):
    if broken == "missing":
        del weights[UNET + "out.bias"]
    elif broken == "unknown":
        weights[UNET + "extra.bias"] = torch.ones(1)
    else:
        other = Small(width=9) if broken == "shape" else Small(context=1024)
        weights = {name: torch.randn_like(tensor) for name, tensor in other.state_dict().items()}
    model = Small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = {
        "missing": "lacks 1",
        "unknown": "has 1 unknown",
        "shape": "differ in shape",
        "family": "SD 2.x",
    }
    with pytest.raises(ValueError, match=expected[broken]):
        assign_weights(model, weights)
    assert_equal(model, before)


def test_errors_name_the_file_and_both_sides(tmp_path, weights):
    base = write(tmp_path / "base.pth", part(weights, UNET))
    with pytest.raises(ValueError, match=r"base.pth lacks 2 tensors of the model \(2 of the control branch"):
        assign_weights(meta(), base)
    lora = write(tmp_path / "d.pth", {"lora_unet_mid_block_attentions_0.lora_down.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="d.pth cannot be loaded: it is a LoRA"):
        assign_weights(meta(), lora)


def test_no_weights_at_all_is_an_error():
    with pytest.raises(ValueError, match="no weights given"):
        assign_weights(meta())
