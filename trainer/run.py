"""One training run from its plan to its files: what tutorial_train.py does once its command line is read."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

import torch
from filelock import FileLock

from checkpoints.files.headers import read_header
from cldm.cldm import ControlNet
from common.shell import USER_ERROR, Stopped, say
from ldm.config import model_settings
from ldm.util import pick_device
from trainer.checkpointing import NAME, STATE, CheckpointFolder, Checkpoints
from trainer.data.dataset import ControlDataset, SampleStream, StreamLoader, validate
from trainer.data.latent_cache import CachedStream, build_cache
from trainer.export import export_branch, push, write_card
from trainer.flags import BESIDE_THE_DATA, GENERATED_DATA
from trainer.lightning import make_trainer
from trainer.model import OffloadedModules, load_for_training, prepare
from trainer.module import ControlTraining
from trainer.plan import RunPlan

FROZEN = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Copies of the weights that a checkpoint holds beside them: DeepSpeed's, those of 8 bits, torch's.
STATES_OFFLOADED, STATES_8BIT, STATES = 3, 0.53, 2


def validate_data(plan: RunPlan) -> int | str:
    """Check every pair: what was found good, or the exit code after naming the first bad pairs."""
    data = _dataset(plan, check_files=False)
    if found := validate(data):
        return say("\n".join(found), USER_ERROR)
    return f"{plan.settings.data.path}: {len(data)} pairs, all good at {data.side} pixels"


def run(plan: RunPlan) -> list[Path]:
    """Train, and write the result; returns its files.

    Raises ValueError, OSError or FloatingPointError in one sentence, `Stopped` when the user ended it.
    """
    length, out = plan.settings.length, plan.settings.output.folder
    device = pick_device(plan.settings.machines.device)
    _check(plan)  # first what costs nothing to find out
    _generate_data(plan)
    data = _dataset(plan)
    plan = plan.for_rows(len(data))  # only now is the number of steps known
    folder = CheckpointFolder(out, length.checkpoints_total_limit)
    resume = folder.find(length.resume_from) if length.resume_from else None
    trainer = make_trainer(plan, device, Checkpoints(folder, length.checkpointing_steps, _copies(plan)))
    module = _module(plan, data, device)
    if resume:
        _check_branch(resume, module)
        _say_if_done(resume, plan)
    if trainer.is_global_zero:
        learning = sum(value.numel() for value in module.learning().values())
        rate, pairs = plan.settings.rate, f"{len(data):,} pairs of {data.side}x{data.side}"
        about = f"{rate.total:,} steps of {plan.pairs}, learning rate {rate.peak:g} ({rate.schedule})"
        say(f"training {learning:,} weights on {pairs}: {about}")
    try:
        trainer.fit(module, ckpt_path=resume and resume / STATE, weights_only=True if resume else None)
    except FloatingPointError as error:
        cure = "resume from it with a lower --learning-rate, or --mixed-precision no or bf16"
        raise FloatingPointError(f"{error}; {folder.kept()}: {cure}") from None
    if module.stopping:
        saved = out / f"checkpoint-{trainer.global_step}"
        raise Stopped(f"stopped; {saved} has the state, --resume-from latest goes on from there")
    return _finish(plan, module) if trainer.is_global_zero else []


def _check(plan: RunPlan) -> None:
    """Whatever can be said before anything large is read."""
    settings, machines, out = plan.settings, plan.settings.machines, plan.settings.output.folder
    needs = {
        "bitsandbytes": (settings.optimization.use_8bit_adam and not machines.offloads, "--use-8bit-adam"),
        "deepspeed": (machines.is_deepspeed, f"--strategy {machines.strategy}"),
        "wandb": ("wandb" in settings.reports.report_to, "--report-to wandb"),
    }
    for package, (wanted, words) in needs.items():
        if wanted and find_spec(package) is None:
            raise ValueError(f"{words} needs the package {package}: pip install {package}, or leave it out")
    if settings.memory.mixed_precision == "fp16" and pick_device(machines.device).type == "cpu":
        raise ValueError("--mixed-precision fp16 needs a GPU: take bf16 or no on the CPU")
    if missing := [path for path in plan.weights if not path.exists()]:
        raise FileNotFoundError(f"no base model {missing[0]}: name one by --resume-path")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):  # to be allowed is not to be able: a disk may be read-only
            pass
    except OSError as error:
        raise OSError(f"{out} cannot be written to ({error.strerror}): choose --output-dir") from None


def _dataset(plan: RunPlan, *, check_files: bool = True) -> ControlDataset:
    settings, most = plan.settings, plan.settings.data.max_train_samples
    shown = (settings.transform, settings.columns, most)
    return ControlDataset(settings.data.path, *shown, check_files=check_files)


def _generate_data(plan: RunPlan) -> None:
    """Make the default data where it is asked for and missing."""
    folder = plan.settings.data.path
    if folder != GENERATED_DATA or (folder / "prompt.json").exists():
        return
    from scenes.fill50k import Recipe, make_dataset

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # of several processes one draws, the others wait
        recipe = Recipe(size=plan.settings.transform.resolution)
        make_dataset(folder, plan.settings.data.train_samples, recipe)


def _module(plan: RunPlan, data: ControlDataset, device: torch.device) -> ControlTraining:
    """The model, ready to learn, and the stream that it learns from."""
    settings = plan.settings
    chosen, memory, seed = settings.model, settings.memory, settings.loss.seed
    model, is_new = load_for_training(plan.config, plan.weights, seed=seed, use_ema=chosen.use_ema)
    # torchrun and Lightning number the processes of a node.
    if is_new and os.environ.get("LOCAL_RANK", "0") == "0":
        copied = isinstance(model.control_model, ControlNet)
        say("a new control branch begins" + (" as a copy of the U-Net's encoder" if copied else ""))
    model.sd_locked, model.only_mid_control = not chosen.unlock_sd, chosen.only_mid_control
    frozen = FROZEN[memory.mixed_precision]
    prepare(model, frozen=frozen, checkpointing=memory.gradient_checkpointing)
    loader = StreamLoader(SampleStream(data, seed), settings.length.batch, settings.data.workers)
    if memory.cache_latents is None:  # read, decode and encode in every step
        return ControlTraining(model, settings, loader)
    model.to(device)
    folder, given = memory.cache_latents, settings.data.path
    if folder == BESIDE_THE_DATA:
        folder = (given if given.is_dir() else given.parent) / "latents"
    build_cache(model, data, folder, frozen, plan.weights)
    model.cpu()  # the cache is made; Lightning moves it where it trains
    cached = replace(loader, stream=CachedStream(SampleStream(data, seed, with_image=False), folder))
    return ControlTraining(model, settings, cached, OffloadedModules(model, plan.weights).loaded)


def _copies(plan: RunPlan) -> float:
    """How many times what learns is in a checkpoint: itself, its optimizer's states, its average."""
    optimization = plan.settings.optimization
    states = STATES_8BIT if optimization.use_8bit_adam else STATES
    if plan.settings.machines.offloads:
        states = STATES_OFFLOADED
    return 1 + states + bool(optimization.ema_decay)


def _check_branch(checkpoint: Path, module: ControlTraining) -> None:
    """ValueError unless a checkpoint holds what this run trains."""
    if (checkpoint / STATE).is_dir():  # DeepSpeed's own form, which checks itself
        return
    stored = {name: one.shape for name, one in read_header(checkpoint / STATE).tensors.items()}
    wanted = {name: tuple(value.shape) for name, value in module.learning().items()}
    odd = [name for name in wanted if stored.get(name) != wanted[name]]
    odd += [name for name in stored if name not in wanted and name not in dict(module.model.named_buffers())]
    if odd:
        words = (
            f"{len(odd)} tensors differ, first {odd[0]}; resume with the flags and the yaml it was begun with"
        )
        raise ValueError(f"{checkpoint} belongs to another branch or another choice of what learns: {words}")


def _say_if_done(checkpoint: Path, plan: RunPlan) -> None:
    """Say that a run begins where it ends: --max-train-steps counts from the first step, not from here."""
    match, total = NAME.fullmatch(checkpoint.name), plan.settings.rate.total
    if match and int(match[1]) >= total:
        words = f"--max-train-steps above {match[1]} goes on"
        say(f"{checkpoint} has all {total:,} steps already, nothing is trained: {words}")


def _finish(plan: RunPlan, module: ControlTraining) -> list[Path]:
    """Write the result, the average where one was kept; upload it if that was asked for."""
    output, learned = plan.settings.output, module.learning()
    params = model_settings(plan.config)["params"]
    with module.average.in_place_of(learned) if module.average else nullcontext():
        branch = module.model.control_model
        files = export_branch(branch, learned, params, output.folder, output.file_format)
    if output.push_to_hub:
        images = sorted((output.folder / "image_log").rglob("*.png"))
        about = {"base": ", ".join(path.name for path in plan.weights), "data": plan.settings.data.path.name}
        about |= {"steps": module.global_step, "resolution": plan.settings.transform.resolution}
        files.append(write_card(output.folder, about, images))
        say(f"uploaded to {push(output.folder, output.hub_model_id, output.hub_token)}")
    return files
