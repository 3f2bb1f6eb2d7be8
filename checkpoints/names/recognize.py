"""What names alone tell: formats that do not load here, LoRAs, and the control that a file steers by.

The formats are the rows of foreign.yaml. A control is told by the name of its file, for weights do not say
it: the published ones of ControlNet 1.0 and 1.1 (`control_v11p_sd15_canny`), their half-precision copies
(`control_v11p_sd15_canny_fp16`), kohya's differences (`diff_control_sd15_canny_fp16`), adapters
(`t2iadapter_canny_sd15v2`) and diffusers' folders (`sd-controlnet-canny`). torch is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

LORA_MARKER = re.compile(r"\.lora_(down|up|mid|A|B|linear_layer)\b|[._]lora\.(down|up)\.")
GENERIC = {"diffusion_pytorch_model", "model", "pytorch_model", "adapter_model"}  # the folder has the name
# Longer names before those that they begin with; the last row is of adapters alone.
KINDS = """
    lineart_anime lineart-anime lineart normalbae normal_bae normal canny depth hed ip2p inpaint mlsd openpose
    scribble seg shuffle softedge tile
    color keypose sketch style
"""
SPELLINGS = {"lineart-anime": "lineart_anime", "normal_bae": "normalbae"}
CONTROL_NAME = re.compile(
    rf"(?:sd-|diff_)?(?:control|t2i-?adapter)(?:.*?)[-_](?P<kind>{'|'.join(KINDS.split())})(?:[-_.]|$)"
)


@dataclass(frozen=True)
class ForeignFormat:
    """What such a file is, what to use instead, and the marker, searched in names one a line."""

    what: str  # reads on after "it is"
    instead: str  # what to take, a clause of the same sentence
    marker: str


def foreign_format(names: Iterable[str]) -> ForeignFormat | None:
    """The format of a file with these tensor names that does not load here; None where no marker is known."""
    text = "\n".join(names)
    return next((one for one in FOREIGN if re.search(one.marker, text, re.M)), None)


def refuse_foreign(label: object, names: Iterable[str]) -> None:
    """Raise ValueError, one sentence, if the file called `label` with these names does not load here."""
    if other := foreign_format(names):
        raise ValueError(f"{label} is {other.what}; {other.instead}")


def is_lora(names: Iterable[str]) -> bool:
    """Whether these are names of low-rank differences, in the naming of any tool."""
    return any(LORA_MARKER.search(name) for name in names)


def file_stem(path: str | Path) -> str:
    """What a weights file or folder is called, without suffix; its folder where every file is called so."""
    path = Path(path)
    stem = path.stem if path.suffix in (".safetensors", ".ckpt", ".pth", ".pt", ".bin") else path.name
    parent = path.absolute().parent
    if stem.split(".")[0] in GENERIC:
        return file_stem(parent.parent if parent.name == "controlnet" else parent)
    return stem


def control_kind(path: str | Path) -> str | None:
    """The control that the name of a file or folder tells, such as `canny` or `hed`; None for other names."""
    found = CONTROL_NAME.match(file_stem(path).lower())
    return None if found is None else SPELLINGS.get(found["kind"], found["kind"])


ROWS = yaml.safe_load(Path(__file__).with_name("foreign.yaml").read_text("utf-8"))["formats"]
FOREIGN = [ForeignFormat(**row) for row in ROWS]
