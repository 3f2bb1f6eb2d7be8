"""Where a run reports to, and how it spreads over devices: Lightning's objects from flags."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from trainer.plan import Setup

ALL_REPORTS = ("tensorboard", "csv", "wandb")


def loggers(args: argparse.Namespace) -> list[Any]:
    """The loggers of --report-to; of `all`, those whose packages are there."""
    from importlib.util import find_spec

    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

    wanted = set(args.report_to) - {"none"}
    if "all" in wanted:
        wanted = {name for name in ALL_REPORTS if name == "csv" or find_spec(name)}
    folder = args.output_dir / args.logging_dir
    made: list[Any] = []
    if "tensorboard" in wanted:
        made.append(TensorBoardLogger(folder, name="", version=""))
    if "csv" in wanted:
        made.append(CSVLogger(folder, name="csv"))
    if "wandb" in wanted:
        made.append(WandbLogger(project=args.tracker_project_name, save_dir=folder))
    return made


def callbacks(args: argparse.Namespace, setup: Setup) -> list[pl.Callback]:
    """Meter and pictures, as the flags want them."""
    from cldm.logger import ImageLogger, Meter, ValidationPictures
    from trainer.callbacks import Validation, read_validation

    made: list[pl.Callback] = [Meter(setup.step_pairs)]
    if args.image_log_steps:
        options = {"ddim_steps": args.sample_steps, "unconditional_guidance_scale": setup.scale}
        made.append(ImageLogger(args.image_log_steps, increase_log_steps=False, log_images_kwargs=options))
    if bool(args.validation_prompt) != bool(args.validation_image):
        raise ValueError("--validation-prompt and --validation-image go together: give both")
    if args.validation_prompt:
        prompts, hints = read_validation(args.validation_prompt, args.validation_image, setup.view.resolution)
        validation = Validation(
            prompts, hints, args.num_validation_images, args.sample_steps, setup.scale, args.seed
        )
        made.append(ValidationPictures(validation, args.validation_steps))
    return made


def strategy(args: argparse.Namespace) -> Any:
    """Lightning's strategy for the flag; plain data parallelism where there are several processes.

    Raises ValueError for names that Lightning does not know or whose package is missing.
    """
    from importlib.util import find_spec

    from pytorch_lightning.strategies import DDPStrategy, StrategyRegistry

    name = args.strategy
    several = args.devices * args.num_nodes > 1
    if name == "auto":
        name = "ddp" if several else "auto"
    if name == "auto":
        return name
    if name not in StrategyRegistry:
        known = ", ".join(
            sorted(one for one in StrategyRegistry if one.startswith(("ddp", "fsdp", "deepspeed")))
        )
        raise ValueError(f"unknown --strategy {name!r}: use {known}")
    if name.startswith("deepspeed") and find_spec("deepspeed") is None:
        raise ValueError(f"--strategy {name} needs the package deepspeed: pip install deepspeed, or use ddp")
    if name.startswith("fsdp") and args.ema_decay:
        raise ValueError(
            "--ema-decay needs whole weights in every process: use ddp, or leave it out with fsdp"
        )
    if name == "ddp":
        # Of a branch that acts on the middle alone, the zero convolutions of the skips get no gradient.
        return DDPStrategy(find_unused_parameters=args.only_mid_control)
    return name
