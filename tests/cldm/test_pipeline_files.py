"""A pipeline from files: control branches of every form at once, and LoRAs."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from checkpoints.names.diffusers import COMPONENTS
from cldm.pipeline import Pipeline
from cldm.request import ControlInput, Request
from tests.lora_files import kohya, random_lora, write_lora
from tests.small_files import SIDE, write_small_model

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
PREFIX = "control_model."
SKETCH = np.full((SIDE, SIDE, 3), 255, np.uint8)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pipe(config):
    return Pipeline.from_files(config, device="cpu")


def write_forms(folder, model):
    """The control branch of `model` as people have it: name of the file or folder -> its path."""
    whole = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    branch = {name: tensor for name, tensor in whole.items() if name.startswith(PREFIX)}
    bare = {name.removeprefix(PREFIX): tensor for name, tensor in branch.items()}
    theirs = {
        name: tensor.contiguous() for name, tensor in COMPONENTS["controlnet"].to_diffusers(bare).items()
    }
    torch.save(whole, folder / "control_sd15_canny.pth")
    torch.save({"state_dict": branch, "epoch": 1}, folder / "last.ckpt")
    torch.save(bare, folder / "bare.bin", _use_new_zipfile_serialization=False)
    save_file(branch, folder / "control_v11p_sd15_canny.safetensors")
    save_file(theirs, folder / "sd-controlnet-canny.safetensors")
    (folder / "control_canny").mkdir()
    save_file(theirs, folder / "control_canny" / "diffusion_pytorch_model.safetensors")
    return {path.name if path.is_dir() else path.stem: path for path in folder.iterdir()}


def test_branches_of_every_form_load_at_once_and_are_the_same(tmp_path, config, pipe):
    forms = write_forms(tmp_path, pipe.model)
    loaded = Pipeline.from_files(config, device="cpu", controls=list(forms.values()))
    assert set(loaded.branches) == set(forms)
    assert len(forms) == 6
    own = pipe.model.control_model.state_dict()
    for name, branch in loaded.branches.items():
        state = branch.state_dict()
        assert list(state) == list(own)
        assert all(torch.equal(state[key], own[key]) for key in own), name


def test_a_half_precision_branch_stands_beside_one_of_full_precision(tmp_path, config, pipe):
    half = {PREFIX + name: tensor.half() for name, tensor in pipe.model.control_model.state_dict().items()}
    save_file(half, tmp_path / "control_canny-fp16.safetensors")
    loaded = Pipeline.from_files(config, device="cpu", controls=[tmp_path / "control_canny-fp16.safetensors"])
    branch = loaded.branches["control_canny-fp16"]
    assert {one.dtype for one in branch.parameters()} == {torch.float32}
    controls = (ControlInput("scribble"), ControlInput("scribble", branch="control_canny-fp16"))
    made = loaded(SKETCH, Request("x", controls=controls, steps=1))
    assert len(made.maps) == 2


def test_two_branches_of_one_name_are_refused_before_anything_loads(tmp_path, config):
    with pytest.raises(ValueError, match="two branches are called 'x'"):
        Pipeline.from_files(config, controls=[tmp_path / "x.pth", tmp_path / "a" / "x.safetensors"])


def test_loras_are_merged_at_load_and_the_branches_stay_as_they_were(tmp_path, config, pipe):
    state = kohya("unet", QUERY, random_lora(torch.nn.Linear(32, 32)), 1.0)
    path = write_lora(tmp_path / "a.safetensors", state)
    loaded = Pipeline.from_files(config, device="cpu", loras=[(path, 0.5), (path, 0.25)])
    once = Pipeline.from_files(config, device="cpu", loras=[(path, 0.75)])
    changed = {
        name
        for name, tensor in loaded.model.state_dict().items()
        if not torch.equal(tensor, pipe.model.state_dict()[name])
    }
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    assert changed == {key}
    torch.testing.assert_close(loaded.model.state_dict()[key], once.model.state_dict()[key])
