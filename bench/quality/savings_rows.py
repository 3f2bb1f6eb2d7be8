"""Ways of saving steps, and the names of what is measured of them."""

from __future__ import annotations

from typing import Any

WHOLE, BETWEEN, BRANCH = "whole", "between", "branch"  # passes of the U-Net, and of the branch
PEER = "diffusers step"
UNSAVED, LONG = "ddim 20", "ddim 50"  # what the others are held against
HALF_REUSED = {"reuse_every": 2, "reuse_cut": "outer-2"}
# Fields of the request, by row.
SAVING_ROWS: dict[str, dict[str, Any]] = {
    LONG: {"steps": 50},
    UNSAVED: {},
    "guidance to 0.8": {"guidance_end": 0.8},
    "guidance to 0.6": {"guidance_end": 0.6},
    "guidance to 0.4": {"guidance_end": 0.4},
    "guidance from 0.2": {"guidance_start": 0.2},
    "reuse 2, outer-1": {"reuse_every": 2, "reuse_cut": "outer-1"},
    "reuse 2, outer-2": HALF_REUSED,
    "reuse 2, outer-3": {"reuse_every": 2, "reuse_cut": "outer-3"},
    "reuse 2, decoder": {"reuse_every": 2, "reuse_cut": "decoder"},
    "reuse 3, outer-2": {"reuse_every": 3, "reuse_cut": "outer-2"},
    "reuse 5, outer-2": {"reuse_every": 5, "reuse_cut": "outer-2"},
    "control 2": {"control_every": 2},
    "control 5": {"control_every": 5},
    "unipc 12": {"sampler": "unipc", "steps": 12},
    "unipc 10": {"sampler": "unipc", "steps": 10},
    "unipc 8": {"sampler": "unipc", "steps": 8},
    "dpmpp_2m 12": {"sampler": "dpmpp_2m", "steps": 12},
    "dpmpp_2m 10": {"sampler": "dpmpp_2m", "steps": 10},
    "dpmpp_2m 8": {"sampler": "dpmpp_2m", "steps": 8},
    "ddim 20, guidance to 0.6, reuse 2": {"guidance_end": 0.6, **HALF_REUSED},
    "ddim 10": {"steps": 10},
    "unipc 10, guidance to 0.6": {"sampler": "unipc", "steps": 10, "guidance_end": 0.6},
    "unipc 10, control 2": {"sampler": "unipc", "steps": 10, "control_every": 2},
    "unipc 10, reuse 2": {"sampler": "unipc", "steps": 10, **HALF_REUSED},
    "unipc 10, guidance to 0.6, control 2": {
        "sampler": "unipc", "steps": 10, "guidance_end": 0.6, "control_every": 2,
    },
    "unipc 10, guidance to 0.6, reuse 2": {
        "sampler": "unipc", "steps": 10, "guidance_end": 0.6, **HALF_REUSED,
    },
}  # fmt: skip
