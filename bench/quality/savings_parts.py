"""Seconds of each part of a picture: whole passes of the U-Net, those of steps between, the branch, the rest.

    python -m bench.quality.savings_parts --json outputs/parts.json
    python -m bench.quality.savings_parts --quantized sd15-int8.safetensors --picture "unipc 10, guidance \
        to 0.6"
    python -m bench.quality.savings_parts --peer --json outputs/diffusers.json

One pass is of one picture with one prompt; guidance takes two, which the pipeline makes in one call where
both are steered alike: sums of two passes are upper bounds there. Each round takes every part once, one
after the other, so that whatever else the machine does meets all of them. Weights are random unless given:
time does not depend on them. --peer measures diffusers' step of the exact Stable Diffusion 1.5 beside them,
in float32 and for both prompts at once, as its pipeline makes them. --picture makes whole pictures of rows
of `bench.quality.savings` too, to hold the sum of parts against. Needs about 6 GB, 11 with --peer.
Exit codes: 0; 2 with one sentence; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.quality.savings_rows import BRANCH, ROWS, WHOLE

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM

ROOT = Path(__file__).parents[2]
LATENT_FACTOR = 8
TOKENS = 77
TIMESTEP = 500
PROMPTS = ["a red circle on a blue ground", "blurry, low quality"]
PEER = "diffusers step"
Run = Callable[[], Any]


def load(config: Path, weights: list[Path], quantized: Path | None) -> ControlLDM:
    """The model to be measured; random weights where no file is given."""
    from cldm.compressed.load import load_quantized_model
    from cldm.model import create_model, load_model

    if quantized:
        return load_quantized_model(config, quantized)
    model = load_model(config, *weights) if weights else create_model(config)
    return model.eval().requires_grad_(False)


def parts(model: ControlLDM, size: int) -> dict[str, Run]:
    """What computes each part, by name: the passes that steps are made of, then what a picture needs once."""
    import torch

    from ldm.modules.feature_cache import CACHE_POINTS

    unet, branch, side = model.model.diffusion_model, model.control_model, size // LATENT_FACTOR
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(1, unet.config.in_channels, side, side, generator=noise)
    text = torch.randn(1, TOKENS, unet.config.context_dim, generator=noise)
    hint, t = torch.rand(1, 3, size, size, generator=noise), torch.tensor([TIMESTEP])
    features = branch.encode_hint(hint)
    residuals = branch(x, features, t, text, encoded=True)

    def between(name: str) -> Run:
        cache = CACHE_POINTS[name].make_cache(len(unet.input_blocks))
        unet(x, t, text, control=residuals, cache=cache)
        return lambda: unet(x, t, text, control=residuals, cache=cache)

    return {
        WHOLE: lambda: unet(x, t, text, control=residuals),
        **{name: between(name) for name in CACHE_POINTS},
        BRANCH: lambda: branch(x, features, t, text, encoded=True),
        "hint": lambda: branch.encode_hint(hint),
        "text": lambda: model.get_learned_conditioning(PROMPTS),
        "decode": lambda: model.decode_first_stage(x),
    }


def peer_step(size: int) -> Run:
    """A denoising step of diffusers for two prompts: U-Net and ControlNet as they come, random weights."""
    import diffusers
    import torch

    unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, sample_size=size // LATENT_FACTOR)
    control = diffusers.ControlNetModel.from_unet(unet)
    x = torch.randn(2, unet.config.in_channels, size // LATENT_FACTOR, size // LATENT_FACTOR)
    text, hint, t = torch.randn(2, TOKENS, 768), torch.rand(2, 3, size, size), torch.tensor(TIMESTEP)

    def step() -> Any:
        down, middle = control(x, t, text, controlnet_cond=hint, return_dict=False)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return unet(x, t, text, **added, return_dict=False)

    return step


def timed(runs: Mapping[str, Run], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds by name: median, lowest and highest of the rounds; one more round before them warms up."""
    from tqdm import tqdm

    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in tqdm(range(rounds + 1), desc="rounds", disable=None):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                taken[name].append(time.perf_counter() - start)
    return {
        name: {"median": statistics.median(values), "low": min(values), "high": max(values)}
        for name, values in taken.items()
    }


def picture(model: ControlLDM, size: int, fields: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by stage of one whole picture of `size` pixels, made as the fields of the request say."""
    import numpy as np

    from cldm.pipeline import Pipeline
    from cldm.request import ControlInput, Request

    request = Request(
        PROMPTS[0], PROMPTS[1], (ControlInput("none", preprocess=False),), resolution=size, **fields
    )
    return dict(Pipeline(model)(np.zeros((size, size, 3), np.uint8), request).seconds)


def table(report: Mapping[str, Any]) -> str:
    """Markdown: the parts, then the whole pictures."""
    lines = ["| part | s | lowest | highest |", "|---|---|---|---|"]
    for name, took in report["parts"].items():
        lines.append(f"| {name} | {took['median']:.2f} | {took['low']:.2f} | {took['high']:.2f} |")
    for name, stages in report["pictures"].items():
        shares = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages.items())
        lines.append(f"| whole picture: {name} | {sum(stages.values()):.1f} ({shares}) | | |")
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality.savings_parts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", type=Path, default=ROOT / "models/cldm_v15.yaml", help="yaml of the model")
    add("--weights", type=Path, nargs="*", default=[], metavar="FILE", help="float weights (default: random)")
    add("--quantized", type=Path, metavar="FILE", help="of python -m quantize, in place of --weights")
    add("--size", type=int, default=512, help="side of the picture, pixels (default: %(default)s)")
    add("--rounds", type=int, default=3, help="measurements of each part (default: %(default)s)")
    add("--peer", action="store_true", help="measure diffusers' step too")
    add("--picture", nargs="*", default=[], metavar="ROW", help="of bench.quality.savings, made whole too")
    add("--json", type=Path, metavar="FILE", help="write the numbers for bench.quality.savings --parts")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit codes as above."""
    args = parse_args(argv)
    try:
        return _run(args)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was written\n")
        return 130
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _run(args: argparse.Namespace) -> int:
    if min(args.rounds, args.size) < 1 or args.size % 64:
        raise ValueError(f"--rounds {args.rounds} --size {args.size}: give 1 or more, pixels in steps of 64")
    if unknown := [name for name in args.picture if name not in ROWS]:
        raise ValueError(f"unknown row {unknown[0]!r}: use some of {', '.join(ROWS)}")
    if args.json and not args.json.parent.is_dir():
        raise FileNotFoundError(f"no folder {args.json.parent} for --json: create it first")
    import torch

    with torch.inference_mode():
        model = load(args.config, args.weights, args.quantized)
        runs = parts(model, args.size)
        if args.peer:
            runs[PEER] = peer_step(args.size)
        report = {
            "config": args.config.name,
            "size": args.size,
            "threads": torch.get_num_threads(),
            "parts": timed(runs, args.rounds),
            "pictures": {name: picture(model, args.size, ROWS[name]) for name in args.picture},
        }
    print(f"{report['config']}, {args.size} pixels, {report['threads']} threads, medians of {args.rounds}\n")
    print(table(report))
    if args.json:
        part = args.json.with_suffix(".partial")
        part.write_text(json.dumps(report, indent=1))
        part.replace(args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
