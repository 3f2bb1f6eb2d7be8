"""One training run from its flags to its files: what tutorial_train.py does once its command line is read."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf

from cldm.cldm import ControlNet
from ldm.config import read_config
from ldm.util import pick_device
from trainer.checkpointing import STATE, CheckpointFolder
from trainer.data.dataset import ControlDataset, DrawLoader, Draws
from trainer.model import PutAway, load_for_training, prepare
from trainer.optim import check_packages
from trainer.plan import Setup, describe, plan_of, read_setup

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from trainer.module import ControlTraining

# Of Lightning: frozen parts are in eval mode on purpose, and its use of torch is not ours.
NOT_FOR_USERS = r".*module\(s\) in eval mode|.*LeafSpec"
PRECISIONS = {"no": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
FROZEN = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ADAM_STATES = {"adamw": 2, "adamw8bit": 0.53, "host": 3}  # copies of the weights in a checkpoint beside them


class Stopped(Exception):
    """The user wanted the run to end; its state is in the checkpoint named."""


def validate_data(args: argparse.Namespace) -> int:
    """Check every pair; 0, or 2 after naming the first bad rows."""
    from trainer.data.dataset import validate

    setup = read_setup(args)
    data = ControlDataset(args.data, setup.view, setup.columns, args.max_train_samples, check_files=False)
    found = validate(data)
    for sentence in found:
        sys.stderr.write(f"{sentence}\n")
    if not found:
        sys.stdout.write(f"{args.data}: {len(data)} pairs, all good at {setup.view.resolution} pixels\n")
    return 2 if found else 0


def run(args: argparse.Namespace) -> list[Path]:
    """Train, and write the result; returns its files.

    Raises ValueError, OSError or FloatingPointError in one sentence, `Stopped` when the user ended it.
    """
    setup = read_setup(args)
    device = pick_device(args.device)
    _check(args, setup, device)
    data = _data(args, setup)
    setup = setup.for_rows(len(data))
    folder = CheckpointFolder(args.output_dir, args.checkpoints_total_limit)
    resume = folder.find(args.resume_from) if args.resume_from else None
    module, trainer, checkpoints = _assemble(args, setup, data, device, folder)
    if resume:
        _check_branch(resume, module)
    if trainer.is_global_zero:
        learning = sum(value.numel() for value in module.learning().values())
        sys.stderr.write(f"{describe(setup, len(data), learning)}\n")
    try:
        trainer.fit(module, ckpt_path=resume and resume / STATE, weights_only=True if resume else None)
    except FloatingPointError as error:
        kept = f"{folder.all()[-1]} is kept" if folder.all() else "there is no checkpoint yet"
        raise FloatingPointError(
            f"{error}; {kept}: resume from it with a lower --learning-rate, or --mixed-precision no or bf16"
        ) from None
    if module.stopping:
        raise Stopped(f"stopped; {checkpoints.saved} has the state, --resume-from latest goes on from there")
    return _finish(args, setup, module, trainer) if trainer.is_global_zero else []


def _check(args: argparse.Namespace, setup: Setup, device: torch.device) -> None:
    """Whatever can be said before anything large is read."""
    from trainer.memory import advice, estimate

    plan = plan_of(args, setup)
    check_packages(setup.settings.optimization, offload=plan.optimizer == "host")
    if "wandb" in args.report_to:
        from importlib.util import find_spec

        if find_spec("wandb") is None:
            raise ValueError("--report-to wandb needs the package wandb: pip install wandb, or use csv")
    missing = [path for path in setup.weights if not path.exists()]
    if missing:
        raise FileNotFoundError(f"no base model {missing[0]}: name one by --resume-path")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    probe = args.output_dir / ".probe.partial"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"{args.output_dir} cannot be written to ({error.strerror}): choose --output-dir"
        ) from None
    found = estimate(setup.config, plan)
    _say(f"{found}")
    if not args.ignore_memory_estimate and (sentence := advice(found, plan, device)):
        raise ValueError(sentence)


def _say(sentence: str) -> None:
    """Once a node: torchrun and Lightning number the processes there."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        sys.stderr.write(f"{sentence}\n")


def _data(args: argparse.Namespace, setup: Setup) -> ControlDataset:
    from trainer.flags import GENERATED_DATA

    if args.data == GENERATED_DATA and not (args.data / "prompt.json").exists():
        from filelock import FileLock

        from scenes.fill50k import Recipe, make_dataset

        args.data.mkdir(parents=True, exist_ok=True)
        with FileLock(args.data.with_suffix(".lock")):
            make_dataset(args.data, args.train_samples, Recipe(size=setup.view.resolution))
    return ControlDataset(args.data, setup.view, setup.columns, args.max_train_samples)


def _assemble(
    args: argparse.Namespace,
    setup: Setup,
    data: ControlDataset,
    device: torch.device,
    folder: CheckpointFolder,
) -> tuple[ControlTraining, pl.Trainer, Any]:
    from trainer.module import Checkpoints, ControlTraining

    model, is_new = load_for_training(setup.config, setup.weights, seed=args.seed, use_ema=args.use_ema)
    if is_new:
        copied = isinstance(model.control_model, ControlNet)
        _say("a new control branch begins" + (" as a copy of the U-Net's encoder" if copied else ""))
    model.sd_locked, model.only_mid_control = not args.unlock_sd, args.only_mid_control
    prepare(model, frozen=FROZEN[args.mixed_precision], checkpointing=args.gradient_checkpointing)
    draws: Any = Draws(data, args.seed)
    parts = {}
    if args.cache_latents is not None:
        from trainer.data.latent_cache import CachedDraws, build_cache

        where = args.cache_latents if args.cache_latents != Path() else _beside(args.data)
        model.to(device)
        cache = build_cache(model, data, where, FROZEN[args.mixed_precision], setup.weights)
        model.cpu()
        draws, parts = CachedDraws(draws, cache), {"parts": PutAway(model, setup.weights).back}
    loader = DrawLoader(draws, args.batch, args.dataloader_num_workers)
    module = ControlTraining(model, setup.settings, loader, **parts)
    copies = 1 + ADAM_STATES[plan_of(args, setup).optimizer] + bool(args.ema_decay)
    size = int(copies * sum(value.nbytes for value in module.learning().values()))
    folder.check_space(size)
    checkpoints = Checkpoints(folder, args.checkpointing_steps, size)
    return module, _trainer(args, setup, device, checkpoints), checkpoints


def _beside(data: Path) -> Path:
    folder = data if data.is_dir() else data.parent
    return folder / "latents"


def _trainer(args: argparse.Namespace, setup: Setup, device: torch.device, checkpoints: Any) -> pl.Trainer:
    import pytorch_lightning as pl

    from trainer.lightning import callbacks, loggers, strategy
    from trainer.module import PlainFiles

    torch.backends.cuda.matmul.allow_tf32 = args.allow_tf32
    if args.lean_attention and device.type == "cuda":
        torch.backends.cuda.enable_math_sdp(False)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=NOT_FOR_USERS)
    deepspeed = args.strategy.startswith("deepspeed")
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index] if device.index is not None and args.devices == 1 else args.devices,
        num_nodes=args.num_nodes,
        strategy=strategy(args),
        precision=PRECISIONS[args.mixed_precision],
        accumulate_grad_batches=args.accumulate,
        gradient_clip_val=args.max_grad_norm if deepspeed else None,
        max_steps=setup.settings.rate.total,
        max_epochs=-1,
        log_every_n_steps=1,
        default_root_dir=args.output_dir,
        logger=loggers(args),
        callbacks=[*callbacks(args, setup), checkpoints],
        plugins=[] if deepspeed else [PlainFiles()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _check_branch(checkpoint: Path, module: ControlTraining) -> None:
    """ValueError unless a checkpoint holds what this run trains."""
    if (checkpoint / STATE).is_dir():  # DeepSpeed's own form, which checks itself
        return
    from checkpoints.files.read import read_weight_file

    stored = {name: one.shape for name, one in read_weight_file(checkpoint / STATE).tensors.items()}
    wanted = {name: value.shape for name, value in module.learning().items()}
    odd = [name for name in wanted if stored.get(name) != wanted[name]]
    odd += [name for name in stored if name not in wanted and name not in dict(module.model.named_buffers())]
    if odd:
        raise ValueError(
            f"{checkpoint} belongs to another branch or another choice of what learns: {len(odd)} tensors "
            f"differ, first {odd[0]}; resume with the flags and the yaml that it was begun with"
        )


def _finish(
    args: argparse.Namespace, setup: Setup, module: ControlTraining, trainer: pl.Trainer
) -> list[Path]:
    """Write the result, the average where one was kept; upload it if that was asked for."""
    params = OmegaConf.to_container(read_config(setup.config).model.params, resolve=True)
    learned: dict[str, Any] = dict(module.learning())
    if module.average is not None:
        with module.average.in_place_of(learned):
            return _hand_out(args, setup, module, params)
    return _hand_out(args, setup, module, params)


def _hand_out(args: argparse.Namespace, setup: Setup, module: ControlTraining, params: Any) -> list[Path]:
    from trainer.export import export_branch

    model = module.model
    files = export_branch(model.control_model, module.learning(), params, args.output_dir, args.output_format)
    if args.push_to_hub:
        from trainer.hub import push, write_card

        pictures = sorted((args.output_dir / "image_log").rglob("*.png"))
        about = {"base": ", ".join(path.name for path in setup.weights), "data": args.data.name}
        about |= {"steps": module.global_step, "resolution": setup.view.resolution}
        files.append(write_card(args.output_dir, about, pictures))
        sys.stderr.write(f"uploaded to {push(args.output_dir, args.hub_model_id, args.hub_token)}\n")
    return files
