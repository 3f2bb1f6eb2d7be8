"""What a run hands out gives the residuals of its branch here and in diffusers, and reaches the hub."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from cldm.model import create_model, load_control
from ldm.config import read_config
from ldm.image import write_png
from ldm.util import instantiate_from_config
from tests.hub_server import hub_on_this_machine
from tests.small_models import SD15, SD21, randomize, relative_error, settings
from trainer.export import export_branch, push, write_card

diffusers = pytest.importorskip("diffusers")

MODELS = Path(__file__).parents[2] / "models"
FULL = [pytest.param(MODELS / name, marks=pytest.mark.slow) for name in ("cldm_v15.yaml", "cldm_v21.yaml")]


@pytest.mark.parametrize(
    "config", [settings(SD15), settings(SD21), *FULL], ids=["sd15", "sd21", "v15", "v21"]
)
@torch.no_grad()
def test_both_forms_give_the_residuals_of_the_branch(config, tmp_path):
    params = OmegaConf.to_container(read_config(config).model.params, resolve=True)
    branch = randomize(instantiate_from_config(params["control_stage_config"]).eval())
    source = torch.Generator().manual_seed(0)
    x, hint = torch.randn(1, 4, 8, 8, generator=source), torch.rand(1, 3, 64, 64, generator=source)
    width = params["control_stage_config"]["params"]["context_dim"]
    text, t = torch.randn(1, 5, width, generator=source), torch.tensor([300])
    expected = branch(x, hint, t, text)
    export_branch(branch, {}, params, tmp_path, "safetensors")
    del branch
    down, middle = diffusers.ControlNetModel.from_pretrained(tmp_path)(
        x, t, text, controlnet_cond=hint, return_dict=False
    )
    ours = load_control(config, tmp_path / "control.safetensors")(x, hint, t, text)
    assert len(expected) == len(down) + 1
    for wanted, theirs, again in zip(expected, [*down, middle], ours, strict=True):
        assert relative_error(theirs, wanted) < 1e-5
        assert relative_error(again, wanted) < 1e-5  # mapped tensors lie otherwise: other kernels


def test_what_was_unlocked_goes_into_the_original_form_only(tmp_path):
    config = settings()
    model = create_model(config)
    model.sd_locked = False
    learned = {name: value for name, value in model.named_parameters() if value.requires_grad}
    params = OmegaConf.to_container(config.model.params)
    export_branch(model.control_model, learned, params, tmp_path, "safetensors")
    original = load_file(tmp_path / "control.safetensors")
    assert learned.keys() <= original.keys()
    assert any(name.startswith("model.diffusion_model.output_blocks.") for name in original)
    layout = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert len(layout) == len(model.control_model.state_dict())


def test_another_kind_of_branch_has_no_layout_of_diffusers(tmp_path):
    (file,) = export_branch(nn.Linear(2, 2), {}, {}, tmp_path, "ckpt")
    assert torch.load(file, weights_only=True)["state_dict"].keys() == {
        "control_model.weight", "control_model.bias",
    }  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    with hub_on_this_machine(monkeypatch) as server:
        yield server


@pytest.fixture
def result(tmp_path):
    """What a run leaves behind."""
    out = tmp_path / "branch"
    pictures = [write_png(out / f"image_log/train/{n}.png", np.zeros((8, 8, 3), np.uint8)) for n in range(6)]
    unfinished = ".checkpoint-6a.partial"
    for folder in ("checkpoint-5", unfinished):
        (out / folder).mkdir()
    files = ("control.safetensors", "config.json", "checkpoint-5/state.ckpt", f"{unfinished}/state.ckpt")
    for name in files:
        (out / name).write_bytes(name.encode())
    write_card(out, {"base": "v1-5.ckpt", "steps": 5}, pictures)
    return out


def test_card_weights_and_pictures_arrive_and_nothing_else_does(hub, result):
    assert push(result, None, "hf_secret") == f"{hub.address}/me/branch"
    assert set(hub.files) == {
        "README.md", "config.json", "control.safetensors", *(f"images/{n}.png" for n in range(2, 6)),
    }  # fmt: skip
    assert hub.files["control.safetensors"] == b"control.safetensors"
    assert {token for _, token in hub.asked} == {"Bearer hf_secret"}


def test_the_card_is_valid_and_shows_its_pictures(result):
    import yaml

    _, head, body = (result / "README.md").read_text().split("---\n", 2)
    assert "controlnet" in yaml.safe_load(head)["tags"]
    assert "| steps | 5 |" in body
    shown = [line for line in body.splitlines() if line.startswith("![")]
    assert shown == [f"![{n}](images/{n}.png)" for n in range(2, 6)]
    assert all((result / f"images/{n}.png").is_file() for n in range(2, 6))


@pytest.mark.parametrize("name", ["mine", "me/mine"])
def test_a_refusal_is_one_sentence_and_the_result_stays(hub, result, name):
    hub.refuses = True
    with pytest.raises(
        ConnectionError, match=r"^\S*mine was not uploaded, .*; the result stays in .*branch$"
    ):
        push(result, name, "wrong")
    assert (result / "control.safetensors").is_file()
