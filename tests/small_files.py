"""A small model on disk, as a user has one: a yaml that names its weights, and the weights."""

from omegaconf import OmegaConf
from safetensors.torch import save_file

from cldm.model import create_model
from tests.small_models import randomize, settings

SIDE = 64  # the smallest picture the pipeline makes


def write_small_model(folder, seed=0):
    """`small.yaml`, `small.safetensors` and one more control branch, `other.safetensors`; the yaml's path."""
    config = settings()
    for name, offset in (("small", 0), ("other", 1)):
        model = randomize(create_model(config), seed + offset)
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        if name == "other":
            state = {key: value for key, value in state.items() if key.startswith("control_model.")}
        save_file(state, folder / f"{name}.safetensors")
    config.weights, config.defaults = ["small.safetensors"], {"resolution": SIDE, "scale": 2.0}
    OmegaConf.save(config, folder / "small.yaml")
    return folder / "small.yaml"
