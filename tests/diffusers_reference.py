"""diffusers' networks with a model's own tensors, and its way through the schedule: an oracle for tests."""

from dataclasses import dataclass

import torch
from torch import nn

from checkpoints.diffusers import configs as form
from checkpoints.names import diffusers as names


@dataclass
class Reference:
    unet: nn.Module
    control: nn.Module
    vae: nn.Module


def reference(model, params):
    """diffusers' networks for the yaml parameters `params`; they share the memory of `model`'s weights."""
    import diffusers

    with torch.device("meta"):
        twins = Reference(
            diffusers.UNet2DConditionModel(**form.part_config("unet", params)),
            diffusers.ControlNetModel(**form.part_config("controlnet", params)),
            diffusers.AutoencoderKL(**form.part_config("vae", params)),
        )
    states = (
        names.COMPONENTS["unet"].to_diffusers(model.model.diffusion_model.state_dict()),
        names.COMPONENTS["controlnet"].to_diffusers(model.control_model.state_dict()),
        names.COMPONENTS["vae"].to_diffusers(model.first_stage_model.state_dict()),
    )
    for twin, state in zip(vars(twins).values(), states, strict=True):
        twin.load_state_dict(state, strict=True, assign=True)
        twin.eval()
    return twins


def residuals(twins, x, t, text, hint, *, guess_mode=False):
    """What the reference's control branch adds, in our order: skips, then middle."""
    down, middle = twins.control(x, t, text, controlnet_cond=hint, guess_mode=guess_mode, return_dict=False)
    return [*down, middle]


def prediction(twins, x, t, text, hint):
    """The reference's controlled U-Net; `hint` None for no control."""
    *down, middle = [None] if hint is None else residuals(twins, x, t, text, hint)
    return twins.unet(
        x,
        t,
        text,
        down_block_additional_residuals=down or None,
        mid_block_additional_residual=middle,
        return_dict=False,
    )[0]


def ddim_walk(predict, x, steps, *, velocity=False, eta=0.0):
    """diffusers' DDIMScheduler with Stable Diffusion's settings; noise from torch's global generator."""
    import diffusers

    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if velocity else "epsilon",
    )
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        noise = torch.randn(x.shape) if eta else None
        x = scheduler.step(predict(x, t), t, x, eta=eta, variance_noise=noise).prev_sample
    return x
