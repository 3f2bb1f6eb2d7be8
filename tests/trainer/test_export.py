"""What a run hands out gives the same residuals here and in diffusers, at small and at full width."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from cldm.model import create_model, load_control
from ldm.config import read_config
from ldm.util import instantiate_from_config
from tests.small_models import SD15, SD21, randomize, relative_error, settings
from trainer.export import export_branch

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
