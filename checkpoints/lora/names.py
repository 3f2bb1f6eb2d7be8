"""The names inside LoRA files: which numbers of which matrix of the model they are for; and their alphas.

A LoRA stores two thin matrices, down and up, for each weight it changes (Hu et al. 2021). Every tool names
the weight in its own way: kohya's with underscores, diffusers' and PEFT's with dots, each after diffusers'
or the original name. The table of all these is made from the model's own names. Alphas are tensors in kohya's
files; diffusers writes them into the metadata, PEFT into adapter_config.json beside the file. Without any,
alpha is the rank, which leaves up @ down as it is. torch is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from checkpoints.files.headers import parse_settings
from checkpoints.names.diffusers import COMPONENTS, OPEN_CLIP, TEXT_LEVEL
from checkpoints.names.original import OPEN_CLIP_MARKER

ROLES = {"A": "down", "B": "up", "down": "down", "up": "up", "mid": "mid"}  # PEFT's letters
ENDING = re.compile(
    r"^(?P<module>.+?)(?:"
    r"\.lora_(?P<kohya>down|up|mid)\.weight"
    r"|\.lora_(?P<peft>[AB])(?:\.default)?\.weight"
    r"|\.lora_linear_layer\.(?P<linear>down|up)\.weight"
    r"|[._]lora\.(?P<old>down|up)\.weight"
    r"|\.(?P<alpha>alpha))$"
)
TEXT_READERS = ("attn2.to_k", "attn2.to_v", "attn2_to_k", "attn2_to_v")  # their input is as wide as the text
PEFT_PREFIX = "base_model.model."  # of names in PEFT's own files
# What trainers who flatten the tree of modules write before its names.
FLAT = {"unet": ("lora_unet_",), "text_encoder": ("lora_te_", "lora_te1_")}
ORIGINAL = ("diffusion_model.", "model.diffusion_model.")  # before the original names, in files of ComfyUI
# diffusers' first files named attention's matrices so, in the U-Net and in the text encoder.
OLD_PROCESSOR = ".processor."
OLD_NAMES = {
    ".to_out.0": ".to_out",
    ".q_proj": ".to_q",
    ".k_proj": ".to_k",
    ".v_proj": ".to_v",
    ".out_proj": ".to_out",
}
METADATA_ENTRY = "lora_adapter_metadata"  # of diffusers
PEFT_SETTINGS = "adapter_config.json"  # its own, beside the file
UNUSUAL = {"use_rslora": "rank-stabilised scaling (rsLoRA)", "use_dora": "a DoRA"}

Alphas = Callable[[str], float | None]  # name of what is changed -> alpha, None where it is the rank


@dataclass(frozen=True)
class LoraTarget:
    """Where in a model a matrix or convolution is: rows from `first` of the weight called `key`.

    part: entry of `checkpoints.names.diffusers.COMPONENTS`.
    """

    part: str
    key: str
    shape: tuple[int, ...]
    first: int = 0  # of fused matrices: query, key and value lie behind each other

    def __getitem__(self, rows: slice) -> LoraTarget:
        """Some of its rows, as the split of open_clip's fused matrices asks for them."""
        return replace(self, shape=(rows.stop - rows.start, *self.shape[1:]), first=self.first + rows.start)


def split_name(name: str) -> tuple[str, str] | None:
    """(what is changed, `down`, `up`, `mid` or `alpha`) of a name in a LoRA file; None for any other name."""
    found = ENDING.match(name)
    if found is None:
        return None
    role = next((ROLES[one] for one in found.group("kohya", "peft", "linear", "old") if one), "alpha")
    return found["module"].replace(OLD_PROCESSOR, "."), role


def parse_lora(text: str) -> tuple[str, float]:
    """(file, weight) of `FILE` or `FILE:WEIGHT`; the weight is 1 where none is given."""
    path, _, number = text.rpartition(":")
    try:
        return (path, float(number)) if path and not Path(text).exists() else (text, 1.0)
    except ValueError:  # a colon in the path itself
        return text, 1.0


def lora_targets(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, LoraTarget]:
    """Everything that a LoRA may change in a model of these names, by every name that tools have for it."""
    table: dict[str, LoraTarget] = {}
    for part in FLAT:
        prefix = COMPONENTS[part].prefix
        own = {
            key.removeprefix(prefix): LoraTarget(part, key, shape)
            for key, shape in shapes.items()
            if key.startswith(prefix)
        }
        open_clip = any(OPEN_CLIP_MARKER in name for name in own)
        names = OPEN_CLIP if open_clip else COMPONENTS[part]
        for theirs, target in names.to_diffusers(own).items():
            if theirs.endswith(".weight") and len(target.shape) > 1:
                ours = target.key.removeprefix(prefix).removesuffix(".weight")
                for alias in _aliases(part, ours, theirs.removesuffix(".weight")):
                    table.setdefault(alias, target)
    return table


def stored_alphas(path: Path, metadata: Mapping[str, str], modules: Iterable[str]) -> Alphas:
    """What the settings of the LoRA file `path` say of the alpha of each of its `modules`.

    Raises ValueError for settings that are damaged, missing where they must be, or of another method.
    """
    if any(module.startswith(PEFT_PREFIX) for module in modules):
        beside = path.with_name(PEFT_SETTINGS)
        if not beside.is_file():
            raise ValueError(
                f"{path} is a file of PEFT, which needs its {PEFT_SETTINGS} beside it: fetch that too"
            )
        theirs = parse_settings(beside.read_text(), beside)
        settings = {f"{PEFT_PREFIX}{name}": value for name, value in theirs.items()}
    else:
        settings = parse_settings(metadata.get(METADATA_ENTRY, "{}"), f"what {path} says of its LoRA")
    for name, value in settings.items():
        if value and (method := UNUSUAL.get(name.rpartition(".")[2])):
            raise ValueError(f"{path} is trained with {method}: take a plain LoRA")
    return lambda module: _alpha(settings, module)


def _aliases(part: str, ours: str, theirs: str) -> Iterator[str]:
    for name in _spellings(part, theirs):
        yield from (prefix + name for prefix in (f"{part}.", "", PEFT_PREFIX))
        yield from (prefix + name.replace(".", "_") for prefix in FLAT[part])
    if part == "unet":
        yield from (prefix + ours for prefix in ORIGINAL)
        yield from (prefix + ours.replace(".", "_") for prefix in FLAT[part])


def _spellings(part: str, name: str) -> Iterable[str]:
    names = [name]
    if part == "text_encoder" and name.startswith(TEXT_LEVEL):
        names.append(name.removeprefix(TEXT_LEVEL))
    old = next((ending for ending in OLD_NAMES if name.endswith(ending)), None)
    return names + [one.removesuffix(old) + OLD_NAMES[old] for one in names] if old else names


def _alpha(settings: Mapping[str, Any], module: str) -> float | None:
    prefix = PEFT_PREFIX if module.startswith(PEFT_PREFIX) else module.partition(".")[0] + "."
    own = settings.get(f"{prefix}alpha_pattern") or {}
    pairs = own.items() if isinstance(own, dict) else ()
    matching = (alpha for name, alpha in pairs if module.endswith(f".{name}"))
    alpha = next(matching, settings.get(f"{prefix}lora_alpha"))
    if not isinstance(alpha, int | float | None):
        raise ValueError(
            f"the alpha of {module} is no number in the settings of its LoRA: get the file again"
        )
    return alpha
