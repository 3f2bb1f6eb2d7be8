"""The command line of tutorial_train.py: its settings, a group of flags each, and presets of their values.

docs/training.md has the table of all flags beside diffusers' and lllyasviel's. Nothing heavy is imported
here, so that --help answers at once.
"""

from __future__ import annotations

from argparse import ArgumentTypeError, BooleanOptionalAction
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from common.flags import add_flags, flag, read_flags
from common.shell import Parser
from trainer.settings import Columns, TrainingSettings, Transform

BranchKind = Literal["full", "lite"]
Preset = Literal["38gb", "20gb", "16gb", "12gb", "8gb"]
Report = Literal["tensorboard", "csv", "wandb", "all", "none"]
GENERATED_DATA = Path("training/fill50k")  # where lllyasviel's tutorial expects it
ALL_DEVICES = -1  # Lightning's word for as many as there are
BESIDE_THE_DATA = Path()  # --cache-latents without a folder


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text}: give 1 or more")
    return int(text)


count = partial(flag, type=_positive)  # a flag whose number is 1 or more


@dataclass(frozen=True)
class ModelSettings:
    """Which weights a run begins with, and what of them learns."""

    config: Path | None = flag(None, "default: models/tiny.yaml with settings that suit it", metavar="YAML")
    weights: tuple[Path, ...] | None = flag(
        None, "base model; without a branch in it a new one begins as its encoder's copy",
        "--resume-path", "--pretrained-model-name-or-path", metavar="FILE",
    )  # fmt: skip
    controlnet: Path | None = flag(None, "branch to begin with", "--controlnet-model-name-or-path")
    branch: BranchKind | None = flag(None, "its kind (default: what the yaml has, else full)")
    use_ema: bool = flag(False, "begin from the moving averages that the base carries")
    unlock_sd: bool = flag(False, "train the U-Net's output half too (sd_locked=False)")
    only_mid_control: bool = flag(False, "let the branch act on the middle block alone")


@dataclass(frozen=True)
class DataSettings:
    """Which pairs are learned from."""

    path: Path = flag(GENERATED_DATA, "pairs; generated where this is missing", "--data", "--train-data-dir")
    train_samples: int = count(2000, "how many pairs to generate then")
    max_train_samples: int | None = count(None, "use only the first N pairs")
    workers: int = flag(0, "processes that read images", "--dataloader-num-workers")  # 0: read in this one
    validate_data: bool = flag(False, "check every pair, name the first bad ones, and stop")


@dataclass(frozen=True)
class LengthSettings:
    """How long a run is, and where it stops by the way."""

    batch: int = count(4, "pairs a step and device", "--train-batch-size", "--batch-size")
    accumulate: int = count(1, "batches a step", "--gradient-accumulation-steps")
    epochs: int = count(1, "turns through the data", "--num-train-epochs")
    max_train_steps: int | None = count(None, "optimizer steps, instead of turns")
    checkpointing_steps: int = count(500, "steps between checkpoints")
    checkpoints_total_limit: int | None = flag(None, "keep only the last N checkpoints")  # None: all stay
    resume_from: str | None = flag(None, "a path, or latest", "--resume-from", "--resume-from-checkpoint")


@dataclass(frozen=True)
class MemorySettings:
    """What trades memory against time."""

    preset: Preset | None = flag(None, "flags for a GPU of this size; each may be given besides")
    gradient_checkpointing: bool | None = flag(None, "compute activations twice (default: the config's)")
    mixed_precision: Literal["no", "fp16", "bf16"] = flag("no", "of what is computed")
    lean_attention: bool = flag(
        False, "never fall back to attention that holds whole matrices; torch's own kernels, no xformers",
        "--enable-xformers-memory-efficient-attention", action=BooleanOptionalAction,
    )  # fmt: skip
    allow_tf32: bool = flag(False, "faster float32 on recent GPUs, a little less exact")
    cache_latents: Path | None = flag(
        None, "compute latents and texts once into DIR (default: beside the data); the autoencoder and the "
        "text encoder then leave memory", metavar="DIR", nargs="?", const=BESIDE_THE_DATA,
    )  # fmt: skip


@dataclass(frozen=True)
class MachineSettings:
    """Where a run computes."""

    device: str = flag("auto", "auto, cpu, cuda or mps", metavar="NAME")  # as `ldm.util.pick_device`
    devices: int = flag(1, "processes on each node, one a GPU")  # -1 is Lightning's word for all
    num_nodes: int = count(1, "")
    strategy: str = flag("auto", "of Lightning: ddp, fsdp, deepspeed_stage_2[_offload], …", metavar="NAME")

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed runs it, which clips and saves in its own way."""
        return self.strategy.startswith("deepspeed")

    @property
    def offloads(self) -> bool:
        """Whether the optimizer's states are in the host's memory."""
        return self.is_deepspeed and self.strategy.endswith("offload")


@dataclass(frozen=True)
class ReportSettings:
    """What a run shows of itself while it goes on."""

    image_log_steps: int = flag(300, "steps between grids in image_log/train, 0 for none")
    validation_prompt: tuple[str, ...] = flag((), "as many as images, or one for all", metavar="TEXT")
    validation_image: tuple[Path, ...] = flag((), "control images", metavar="FILE")
    num_validation_images: int = count(4, "samples of each")
    validation_steps: int = count(100, "steps between grids in image_log/validation")
    sample_steps: int = count(20, "of the sampler, in both")
    guidance_scale: float | None = flag(None, "in both (default: the model's, else 9)")
    report_to: tuple[Report, ...] = flag(
        ("tensorboard",), "where numbers go (default: tensorboard)", type=str, choices=get_args(Report)
    )
    logging_dir: Path = flag(Path("logs"), "inside the output folder")
    tracker_project_name: str = flag("train_controlnet", "of wandb", metavar="NAME")


@dataclass(frozen=True)
class OutputSettings:
    """What a run hands out."""

    folder: Path = flag(Path("controlnet-model"), "made if missing", "--output-dir", "--out", metavar="DIR")
    file_format: Literal["safetensors", "ckpt"] = flag("safetensors", "of the result", "--output-format")
    push_to_hub: bool = flag(False, "upload the result")
    hub_token: str | None = flag(None, "default: the one you logged in with", metavar="TOKEN")
    hub_model_id: str | None = flag(None, "of the repository (default: the folder's name)", metavar="NAME")


@dataclass(frozen=True)
class RunSettings(TrainingSettings):
    """All flags of one run, by their groups."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    columns: Columns = Columns()
    transform: Transform = Transform()
    length: LengthSettings = LengthSettings()
    memory: MemorySettings = MemorySettings()
    machines: MachineSettings = MachineSettings()
    reports: ReportSettings = ReportSettings()
    output: OutputSettings = OutputSettings()


# In the order of --help: the base class's, finer ones, come last.
GROUPS: dict[str, type] = dict(
    sorted(get_type_hints(RunSettings).items(), key=lambda group: hasattr(TrainingSettings, group[0]))
)


def parse_args(
    argv: list[str] | None, description: str, prog: str = "tutorial_train.py", **defaults: object
) -> RunSettings:
    """The settings of a command line: what is given, then what --preset says, then the defaults.

    Without --config the tiny model's defaults hold. SystemExit with one sentence when it is wrong.
    """
    parser = Parser(prog, description)
    for name, settings in GROUPS.items():
        add_flags(parser, settings, name)
    parser.set_defaults(**defaults)
    first = parser.parse_args(argv)  # once for --preset and --config, which set the defaults of the rest
    parser.set_defaults(**(TINY if first.config is None else {}))
    parser.set_defaults(**PRESETS.get(first.preset, {}))
    args = parser.parse_args(argv)  # now with those defaults: what is given still wins
    try:
        return RunSettings(**{name: read_flags(settings, args) for name, settings in GROUPS.items()})
    except ValueError as error:
        parser.error(str(error))


# What diffusers recommends for ControlNet, by the GPU's memory. Each keeps a batch of 4 a step.
_ONE_BY_ONE = {"batch": 1, "accumulate": 4}  # 4 pairs a step in the memory of one
_LEAN = _ONE_BY_ONE | {"gradient_checkpointing": True, "use_8bit_adam": True}
PRESETS: dict[str, dict[str, Any]] = {
    "38gb": {"batch": 4, "gradient_checkpointing": False},
    "20gb": _ONE_BY_ONE | {"gradient_checkpointing": False},
    "16gb": _LEAN,  # activations twice, states of 8 bits
    "12gb": _LEAN | {"lean_attention": True, "set_grads_to_none": True},
    "8gb": _LEAN | {
        "lean_attention": True, "set_grads_to_none": True, "mixed_precision": "fp16",
        "use_8bit_adam": False, "strategy": "deepspeed_stage_2_offload",  # the states are on the host
    },
}  # fmt: skip

# For the model that ships: its training's learning rate, and about as long as it takes to follow outlines.
TINY: dict[str, Any] = {"peak": 5e-4, "batch": 8, "max_train_steps": 3000}
