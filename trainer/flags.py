"""The command line of tutorial_train.py: the fields of `trainer.settings`, and presets of their values.

docs/training.md has the table of all flags beside diffusers' and lllyasviel's.
"""

from __future__ import annotations

from typing import Any, get_type_hints

from common.flags import add_flags, read_flags
from common.shell import Parser
from trainer.settings import RunSettings

TITLES = {
    "model": "model",
    "data": "data",
    "length": "how long",
    "rate": "learning rate",
    "optimization": "optimizer",
    "loss": "loss (noise or velocity: as the config says)",
    "memory": "memory",
    "machines": "machines",
    "reports": "what is shown",
    "output": "output",
}
GROUPS: dict[str, type] = get_type_hints(RunSettings)  # as fields are named


def parse_args(
    argv: list[str] | None, description: str, prog: str = "tutorial_train.py", **defaults: object
) -> RunSettings:
    """The settings of a command line: what is given, then what --preset says, then the defaults.

    Without --config the tiny model's defaults hold. SystemExit with one sentence when it is wrong.
    """
    parser = Parser(prog, description)
    for name, title in TITLES.items():
        add_flags(parser, GROUPS[name], title)
    parser.set_defaults(**defaults)
    first = parser.parse_args(argv)
    parser.set_defaults(**(TINY if first.config is None else {}))
    parser.set_defaults(**PRESETS.get(first.preset, {}))
    args = parser.parse_args(argv)
    try:
        return RunSettings(**{name: read_flags(settings, args) for name, settings in GROUPS.items()})
    except ValueError as error:
        parser.error(str(error))


# What diffusers recommends for ControlNet, by the GPU's memory. Each keeps a batch of 4 a step.
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
TINY: dict[str, Any] = {"peak": 5e-4, "batch": 8, "max_train_steps": 3000}
