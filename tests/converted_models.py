"""Small whole models on disk for the tests of conversion: SD 1.5-like, and SD 2.1-like with velocity."""

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from cldm.model import create_model
from tests.small_models import SD15, SD21, randomize, settings

OPEN_CLIP_TEXT = {
    "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
    "params": {"config": {"width": 32, "heads": 4, "layers": 3, "embed_dim": 32}},
}
CONFIGS = {
    "sd15": settings(SD15, image_size=8),
    "sd21": settings(SD21, image_size=8, cond_stage_config=OPEN_CLIP_TEXT, parameterization="v"),
}
EMA = "model_ema.diffusion_model"


def write_model(folder, family, seed=0):
    """`full.safetensors` and `model.yaml` in `folder`; the model's state dict."""
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(CONFIGS[family], folder / "model.yaml")
    state = randomize(create_model(CONFIGS[family]), seed).state_dict()
    state = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    save_file(state, folder / "full.safetensors")
    return state


def write_training_checkpoint(path, state):
    """A checkpoint as trainers leave it: averages of the U-Net, a loss network, the optimizer's state."""
    base = {name: tensor for name, tensor in state.items() if not name.startswith("control_model.")}
    averages = {
        EMA + name.removeprefix("model.diffusion_model").replace(".", ""): tensor + 1
        for name, tensor in base.items()
        if name.startswith("model.diffusion_model.")
    }
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}
    losses = {"first_stage_model.loss.logvar": torch.zeros(())}
    optimizer = [{"state": {0: {"exp_avg": torch.ones(1 << 18)}}}]
    saved = {"state_dict": base | averages | counters | losses, "optimizer_states": optimizer, "epoch": 1}
    torch.save(saved, path)
    return base, averages
