"""What a safetensors file says of itself, in the words of the Stability AI model metadata standard.

Its keys tell programs the architecture without a look at the tensors. A file of an unknown architecture gets
none of them: all or nothing, says the standard (1.0.0).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from checkpoints.compatibility import context_width
from checkpoints.files.lazy import Values
from checkpoints.names.diffusers import COMPONENTS, detect_component

VERSION = "1.0.0"
ARCHITECTURES = {
    (768, "epsilon"): "stable-diffusion-v1",
    (1024, "epsilon"): "stable-diffusion-v2-512",
    (1024, "v"): "stable-diffusion-v2-768-v",
}
CONTROL = "/controlnet"  # behind the architecture that a branch belongs to
ORIGINAL = "https://github.com/lllyasviel/ControlNet"  # the program whose names the tensors have
SHORT = {"epsilon": "epsilon", "v_prediction": "v"}  # diffusers' word -> the standard's
LONG = {short: long for long, short in SHORT.items()}
KEY = "modelspec."


def describe(
    state: Mapping[str, Values], title: str, source: Mapping[str, str], prediction: str | None = None
) -> dict[str, str]:
    """Metadata for a file with the tensors `state`: that of its source, and what can be told besides.

    prediction: epsilon or v_prediction; None where that is not known. Checksums of the source are left out.
    """
    kept = {key: value for key, value in source.items() if "hash" not in key}
    short = SHORT.get(prediction or "") or source.get(f"{KEY}prediction_type")
    width = context_width({name: tuple(tensor.shape) for name, tensor in state.items()})
    if width == min(one for one, _ in ARCHITECTURES):
        short = short or "epsilon"  # nobody published another Stable Diffusion 1.x
    architecture = ARCHITECTURES.get((width, short))
    if not architecture:
        return kept
    said = {
        "sai_model_spec": VERSION,
        "architecture": architecture + (CONTROL if _is_branch(state) else ""),
        "implementation": "diffusers" if detect_component(state) else ORIGINAL,
        "prediction_type": short,
        "title": source.get(f"{KEY}title", title),
    }
    return kept | {KEY + name: value for name, value in said.items()}


def prediction_in(metadata: Mapping[str, str]) -> str | None:
    """What the metadata of a file says that its U-Net predicts, in diffusers' words; None where nothing."""
    return LONG.get(metadata.get(f"{KEY}prediction_type", ""))


def _is_branch(names: Iterable[str]) -> bool:
    names = list(names)
    branch = COMPONENTS["controlnet"]
    return detect_component(names) == "controlnet" or all(name.startswith(branch.prefix) for name in names)
