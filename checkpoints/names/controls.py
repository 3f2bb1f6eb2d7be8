"""Which control a file steers by, as far as its name tells: the names that people have on disk.

Weights do not say it. Known are the published names of ControlNet 1.0 and 1.1 (`control_v11p_sd15_canny`),
their half-precision copies for other programs (`control_canny-fp16`, `control_v11p_sd15_canny_fp16`), kohya's
differences (`diff_control_sd15_canny_fp16`), adapters (`t2iadapter_canny_sd15v2`) and diffusers' folders
(`sd-controlnet-canny`).
"""

from __future__ import annotations

import re
from pathlib import Path

GENERIC = {"diffusion_pytorch_model", "model", "pytorch_model", "adapter_model"}  # the folder has the name
# Longer names before those that they begin with; the last row is of adapters alone.
KINDS = """
    lineart_anime lineart-anime lineart normalbae normal_bae normal canny depth hed ip2p inpaint mlsd openpose
    scribble seg shuffle softedge tile
    color keypose sketch style
"""
SPELLINGS = {"lineart-anime": "lineart_anime", "normal_bae": "normalbae"}
NAME = re.compile(
    rf"(?:sd-|diff_)?(?:control|t2i-?adapter)(?:.*?)[-_](?P<kind>{'|'.join(KINDS.split())})(?:[-_.]|$)"
)


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
    found = NAME.match(file_stem(path).lower())
    return None if found is None else SPELLINGS.get(found["kind"], found["kind"])
