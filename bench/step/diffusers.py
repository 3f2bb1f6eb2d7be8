"""diffusers' networks with the weights of `bench.files`, and what computes a step with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from bench.files import Files
    from bench.inputs import Inputs


@dataclass
class Networks:
    """diffusers' U-Net and control branch."""

    unet: nn.Module
    control: nn.Module

    def step(self, inputs: Inputs) -> Tensor:
        """The predicted noise [b, 4, h, w]; the hint is encoded each time, as in diffusers' pipeline."""
        return self.unet_step(inputs.x, inputs.t, inputs.text, *self.residuals(inputs))

    def residuals(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """What the branch adds: to the skips, then to the middle."""
        x, t, text, hint = inputs.x, inputs.t, inputs.text, inputs.hint
        down, middle = self.control(x, t, text, controlnet_cond=hint, return_dict=False)  # 12 and 1 at SD 1.5
        return (*down, middle)

    def unet_step(self, x: Tensor, t: Tensor, text: Tensor, *residuals: Tensor) -> Tensor:
        """The predicted noise, from the branch's residuals."""
        *down, middle = residuals
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(x, t, text, **added, return_dict=False)[0]


def load_networks(files: Files) -> Networks:
    """Both networks on the float file's tensors, mapped, as diffusers' own loading leaves them."""
    return Networks(load_part(files, "unet"), load_part(files, "controlnet"))


def load_part(files: Files, part: str) -> nn.Module:
    """diffusers' module for an entry of `names.diffusers.COMPONENTS`, with the float file's tensors."""
    import diffusers

    from checkpoints.diffusers.check import read_params
    from checkpoints.diffusers.configs import part_config
    from checkpoints.names.diffusers import COMPONENTS

    kind = {"unet": diffusers.UNet2DConditionModel, "controlnet": diffusers.ControlNetModel}[part]
    names = COMPONENTS[part]
    state = {name[len(names.prefix) :]: t for name, t in files.tensors() if name.startswith(names.prefix)}
    with torch.device("meta"):  # the file's pages become its weights
        module = kind(**part_config(part, read_params(files.config)))
    module.load_state_dict(names.to_diffusers(state), strict=True, assign=True)
    return module.eval().requires_grad_(False)
