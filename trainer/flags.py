"""The flags of tutorial_train.py: those of diffusers' train_controlnet.py under their names, and our own.

Nothing heavy is imported here, so that --help answers at once. docs/training.md has the table of all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.shell import Parser
from trainer.presets import PRESETS, TINY

SCHEDULE_NAMES = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
)
BRANCH_KINDS = ("full", "lite")
TINY_CONFIG = Path("models/tiny.yaml")
GENERATED_DATA = Path("training/fill50k")
REPORTS = ("tensorboard", "csv", "wandb", "all", "none")


def parse_args(
    argv: list[str] | None, description: str, prog: str = "tutorial_train.py", **defaults: object
) -> argparse.Namespace:
    """Read the command line: what is given, then what --preset says, then the defaults.

    Without --config the tiny model's defaults hold. SystemExit with one sentence when it is wrong.
    """
    parser = Parser(prog=prog, description=description, formatter_class=_Help)
    for add_flags in (
        _add_files, _add_data, _add_steps, _add_optimizer, _add_loss, _add_memory, _add_machines,
        _add_pictures, _add_output,
    ):  # fmt: skip
        add_flags(parser)
    parser.set_defaults(**defaults)
    first = parser.parse_args(argv)
    parser.set_defaults(**(TINY if first.config is None else {}))
    parser.set_defaults(**PRESETS.get(first.preset, {}))
    return parser.parse_args(argv)


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" says nothing that the help does not say better.
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--config", type=Path, metavar="YAML", help="default: models/tiny.yaml with settings that suit it")
    add(
        "--resume-path", "--pretrained-model-name-or-path", nargs="+", type=Path, dest="weights",
        metavar="FILE", help="base model; where no branch is in it a new one begins as its encoder's copy",
    )  # fmt: skip
    add(
        "--controlnet-model-name-or-path", type=Path, dest="controlnet", metavar="FILE",
        help="control branch to begin with",
    )  # fmt: skip
    add("--branch", choices=BRANCH_KINDS, help="its kind (default: what the yaml has, else full)")
    add("--use-ema", action="store_true", help="begin from the moving averages that the base carries")
    add("--unlock-sd", action="store_true", help="train the U-Net's output half too (sd_locked=False)")
    add("--only-mid-control", action="store_true", help="let the branch act on the middle block alone")


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add(
        "--data", "--train-data-dir", type=Path, default=GENERATED_DATA, metavar="PATH",
        help="folder or list of pairs; the default one is generated if it is missing",
    )  # fmt: skip
    add("--train-samples", type=int, default=2000, metavar="N", help="how many pairs to generate then")
    add("--image-column", metavar="NAME", help="of the picture (default: target or image)")
    add("--conditioning-image-column", metavar="NAME", help="(default: source or conditioning_image)")
    add("--caption-column", metavar="NAME", help="of the text (default: prompt or text)")
    add("--max-train-samples", type=int, metavar="N", help="use only the first N rows")
    add(
        "--resolution",
        type=int,
        metavar="PX",
        help="side of the pictures, a multiple of 64 (default: the model's)",
    )
    add(
        "--random-crop",
        action="store_true",
        help="cut pictures that are no squares anywhere, not in the middle",
    )
    add("--flip", action="store_true", help="turn every second pair over, left to right")
    add("--proportion-empty-prompts", type=float, default=0.0, metavar="X", help="share of prompts left out")
    add("--dataloader-num-workers", type=int, default=0, metavar="N", help="processes that read pictures")
    add("--validate-data", action="store_true", help="check every pair, name the first bad rows, and stop")


def _add_steps(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how long").add_argument
    add(
        "--train-batch-size",
        "--batch-size",
        type=int,
        default=4,
        dest="batch",
        metavar="N",
        help="pairs a step and device",
    )
    add(
        "--gradient-accumulation-steps",
        type=int,
        default=1,
        dest="accumulate",
        metavar="N",
        help="batches a step",
    )
    add("--num-train-epochs", type=int, default=1, metavar="N", help="turns through the data")
    add("--max-train-steps", type=int, metavar="N", help="optimizer steps, instead of turns")
    add("--seed", type=int, default=0, help="of everything random")
    add("--checkpointing-steps", type=int, default=500, metavar="N", help="steps between checkpoints")
    add("--checkpoints-total-limit", type=int, metavar="N", help="keep only the last N checkpoints")
    add(
        "--resume-from", "--resume-from-checkpoint", dest="resume_from", metavar="NAME",
        help="go on from a checkpoint: a path, or latest",
    )  # fmt: skip


def _add_optimizer(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("optimizer").add_argument
    add("--learning-rate", type=float, default=1e-5, metavar="X")
    add("--scale-lr", action="store_true", help="multiply the rate by batch, accumulation and devices")
    add("--lr-scheduler", choices=SCHEDULE_NAMES, default="constant", help="course of the learning rate")
    add("--lr-warmup-steps", type=int, default=500, metavar="N", help="of every course but constant")
    add("--lr-num-cycles", type=int, default=1, metavar="N", help="of cosine_with_restarts")
    add("--lr-power", type=float, default=1.0, metavar="X", help="of polynomial")
    add("--use-8bit-adam", action=argparse.BooleanOptionalAction, default=False, help="needs bitsandbytes")
    add("--adam-beta1", type=float, default=0.9, metavar="X")
    add("--adam-beta2", type=float, default=0.999, metavar="X")
    add("--adam-weight-decay", type=float, default=1e-2, metavar="X")
    add("--adam-epsilon", type=float, default=1e-8, metavar="X")
    add("--max-grad-norm", type=float, default=1.0, metavar="X", help="0 is no limit")
    add(
        "--ema-decay",
        type=float,
        default=0.0,
        metavar="X",
        help="average what learns, such as 0.999; 0 is off",
    )


def _add_loss(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("loss (noise or velocity: as the config says)").add_argument
    add("--snr-gamma", type=float, metavar="X", help="Min-SNR weights, usually 5; off by default")
    add("--noise-offset", type=float, default=0.0, metavar="X", help="usually 0.1; 0 is off")


def _add_memory(parser: argparse.ArgumentParser) -> None:
    about = "--preset sets the others of this group and the batch; each may be given besides"
    add = parser.add_argument_group("memory", about).add_argument
    switch = argparse.BooleanOptionalAction
    add("--preset", choices=tuple(PRESETS), help="for cards of this size")
    add(
        "--gradient-checkpointing",
        action=switch,
        help="compute activations twice (default: as the config says)",
    )
    add("--mixed-precision", choices=("no", "fp16", "bf16"), default="no", help="of what is computed")
    add("--set-grads-to-none", action=switch, default=True, help="free gradients between steps")
    add(
        "--enable-xformers-memory-efficient-attention", action=switch, default=False, dest="lean_attention",
        help="never fall back to attention that holds whole matrices; torch's own kernels, no xformers",
    )  # fmt: skip
    add("--allow-tf32", action="store_true", help="faster float32 on recent cards, a little less exact")
    add(
        "--cache-latents", nargs="?", type=Path, const=Path(), metavar="DIR",
        help="compute latents and texts once into DIR (default: beside the data); the autoencoder and the "
        "text encoder then leave memory",
    )  # fmt: skip
    add("--ignore-memory-estimate", action="store_true", help="start even where memory looks too small")


def _add_machines(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("machines").add_argument
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or mps")
    add("--devices", type=int, default=1, metavar="N", help="processes on each node, one a card")
    add("--num-nodes", type=int, default=1, metavar="M")
    add(
        "--strategy",
        default="auto",
        metavar="NAME",
        help="ddp, fsdp, deepspeed_stage_2[_offload] and others of Lightning's",
    )


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is shown").add_argument
    add(
        "--image-log-steps",
        type=int,
        default=300,
        metavar="N",
        help="steps between grids in image_log/train, 0 for none",
    )
    add(
        "--validation-prompt", nargs="+", default=[], metavar="TEXT", help="as many as images, or one for all"
    )
    add("--validation-image", nargs="+", type=Path, default=[], metavar="FILE", help="control pictures")
    add("--num-validation-images", type=int, default=4, metavar="N", help="samples of each")
    add(
        "--validation-steps",
        type=int,
        default=100,
        metavar="N",
        help="steps between grids in image_log/validation",
    )
    add("--sample-steps", type=int, default=20, metavar="N", help="of the sampler, in both")
    add("--guidance-scale", type=float, metavar="X", help="in both (default: the model's, else 9)")
    add("--report-to", nargs="+", choices=REPORTS, default=["tensorboard"], help="where numbers go")
    add("--logging-dir", type=Path, default=Path("logs"), help="inside the output folder")
    add("--tracker-project-name", default="train_controlnet", metavar="NAME", help="of wandb")


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add(
        "--output-dir",
        "--out",
        type=Path,
        default=Path("controlnet-model"),
        metavar="DIR",
        help="made if missing",
    )
    add(
        "--output-format",
        choices=("safetensors", "ckpt"),
        default="safetensors",
        help="of the original-names file",
    )
    add("--push-to-hub", action="store_true", help="upload the result")
    add("--hub-token", metavar="TOKEN", help="default: the one you logged in with")
    add("--hub-model-id", metavar="NAME", help="of the repository (default: the output folder's name)")
