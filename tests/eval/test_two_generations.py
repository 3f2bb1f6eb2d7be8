"""1.0's full file and 1.1's base with a control of its own, the same weights: the same picture to the bit."""

import numpy as np
import torch
from safetensors.torch import load_file

from bench.forms.form import parse_form
from cldm.request import ControlInput, Request
from tests.small_files import write_small_model

CONTROL = "control_model."


def test_both_ways_to_load_give_the_same_picture(tmp_path):
    config = write_small_model(tmp_path)
    state = load_file(config.parent / "small.safetensors")
    branch = {name: tensor for name, tensor in state.items() if name.startswith(CONTROL)}
    base = {name: tensor for name, tensor in state.items() if name not in branch}
    assert branch
    torch.save(state, tmp_path / "control_sd15_canny.pth")
    torch.save({"state_dict": base}, tmp_path / "v1-5-pruned.ckpt")
    torch.save(branch, tmp_path / "control_v11p_sd15_canny.pth")
    old = f"old={config}:{tmp_path / 'control_sd15_canny.pth'}"
    new = f"new={config}:{tmp_path / 'v1-5-pruned.ckpt'}:{tmp_path / 'control_v11p_sd15_canny.pth'}"
    hint = np.zeros((64, 64, 3), np.uint8)
    hint[20:40, 20:40] = 255
    request = Request("a square", controls=(ControlInput("none", preprocess=False),), steps=2, resolution=64)
    first, second = (parse_form(text).open("cpu")(hint, request).images[0] for text in (old, new))
    assert (first == second).all()
    assert first.std() > 0
