"""Settings for cards of a size, as flags: what diffusers recommends for ControlNet, by the card's memory.

The names of the keys are those of the flags' values. Each preset keeps a batch of 4 a step.
"""

from __future__ import annotations

from typing import Any

_ONE_BY_ONE = {"batch": 1, "accumulate": 4}
_LEAN = _ONE_BY_ONE | {"gradient_checkpointing": True, "use_8bit_adam": True}
PRESETS: dict[str, dict[str, Any]] = {
    "38gb": {"batch": 4, "gradient_checkpointing": False},
    "20gb": _ONE_BY_ONE | {"gradient_checkpointing": False},
    "16gb": _LEAN,
    "12gb": _LEAN | {"lean_attention": True, "set_grads_to_none": True},
    "8gb": _LEAN | {
        "lean_attention": True, "set_grads_to_none": True, "mixed_precision": "fp16",
        "use_8bit_adam": False, "strategy": "deepspeed_stage_2_offload",  # the states are on the host
    },
}  # fmt: skip

# For the model that ships: its training's learning rate, and about as long as it takes to follow outlines.
TINY: dict[str, Any] = {"learning_rate": 5e-4, "batch": 8, "max_train_steps": 3000}
