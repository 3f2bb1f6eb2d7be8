"""Small models of the published kinds for the tests, with every weight drawn at random."""

import torch
from omegaconf import OmegaConf

from cldm.model import create_model

COMMON = {
    "in_channels": 4, "model_channels": 32, "attention_resolutions": [2, 1], "num_res_blocks": 2,
    "channel_mult": [1, 2, 2], "context_dim": 32, "num_groups": 8,
}  # fmt: skip
SD15 = COMMON | {"num_heads": 8}
SD21 = COMMON | {"num_head_channels": 8, "use_linear_in_transformer": True, "upcast_attention": True}
VAE = {"z_channels": 4, "ch": 8, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 1, "num_groups": 4}
TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


def settings(unet=SD15, vae=VAE, **params):
    """A model yaml's content; `params` are the model's own, such as parameterization."""
    parts = {
        "control_stage_config": {"target": "cldm.cldm.ControlNet", "params": unet | {"hint_channels": 3}},
        "unet_config": {"target": "cldm.cldm.ControlledUnetModel", "params": unet | {"out_channels": 4}},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {"embed_dim": 4, "ddconfig": vae},
        },
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"config": TEXT},
        },
    }
    return OmegaConf.create({"model": {"target": "cldm.cldm.ControlLDM", "params": parts | params}})


def build(unet=SD15, seed=0, **params):
    """A ControlLDM whose zero convolutions too hold random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return randomize(create_model(settings(unet, **params)).eval(), seed)


def randomize(module, seed=0):
    """Draw every parameter: weights that keep their input's variance about, norms near 1, small biases."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=noise)
            if parameter.ndim > 1:
                parameter.copy_(drawn / parameter[0].numel() ** 0.5)
            elif name.endswith("weight"):  # the gain of a norm
                parameter.copy_(1 + 0.2 * drawn)
            else:
                parameter.copy_(0.2 * drawn)
    return module


def relative_error(got, expected):
    """Size of the difference over the size of what is expected."""
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()
