"""The flags of generate.py as data. Nothing heavy is imported here, so that --help answers at once.

None is a flag that was not given: `app.generate_request` says what that means. The fields are called as those
of `cldm.request.Request` and `ControlInput`, of detectors and of `app.provenance.Provenance`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_type_hints

from common.flags import add_flags, flag, read_flags
from common.shell import Parser

each = partial(flag, None, action="append")  # once for all controls, or once for each


@dataclass(frozen=True)
class InputFlags:
    """What is to be drawn from."""

    image: tuple[Path, ...] | None = each("drawing, photograph or map; one for each control", metavar="FILE")
    batch_dir: Path | None = flag(None, "its pictures; circle.txt is circle.png's prompt", metavar="DIR")
    from_image: Path | None = flag(None, "make this picture again; flags change it", "--from", metavar="PNG")
    init: Path | None = flag(None, "picture to start from", metavar="FILE")
    mask: Path | None = flag(None, "white where it is painted anew, the rest stays", metavar="FILE")


@dataclass(frozen=True)
class RequestFlags:
    """What to make, and how."""

    prompt: str | None = flag(None, "what to draw; (word:1.2) weighs a word", metavar="TEXT")
    negative_prompt: str | None = flag(None, "what to keep away from", metavar="TEXT")
    seed: int | None = flag(None, "of the noise, 0 or more (default: 0)")
    num_samples: int | None = flag(None, "pictures of each, seeds count up (default: 1)")
    steps: int | None = flag(None, "of the sampler (default: 20)")
    sampler: str | None = flag(None, "--list names them (default: ddim)", metavar="NAME")
    eta: float | None = flag(None, "noise of ddim, 0 to 1 (default: 0)")
    scale: float | None = flag(None, "of the guidance, 1 is none (default: the model's)")
    resolution: int | None = flag(None, "of the short side (default: the model's)", metavar="PX")
    clip_skip: int | None = flag(None, "text from the N-th layer from the end")
    denoise: float | None = flag(None, "how much of --init is made anew, up to 1 (default: 1)")
    guided_control: bool | None = flag(None, "--scale strengthens the control too (default: the model's)")
    guess_mode: bool | None = flag(None, "let the control speak; no prompt needed", action="store_true")


@dataclass(frozen=True)
class SavingFlags:
    """What saves time and changes the picture a little: docs/speed.md has how much of both."""

    guidance_start: float | None = flag(None, "first guided part of the steps (default: 0)")
    guidance_end: float | None = flag(None, "last guided part of the steps (default: 1)")
    reuse_every: int | None = flag(None, "one whole step in N, others reuse it (default: 1, off)")
    reuse_cut: str | None = flag(None, "what others compute, see --list (default: outer-2)", metavar="NAME")
    control_every: int | None = flag(None, "one step in N computes the control (default: 1)")


@dataclass(frozen=True)
class ControlFlags:
    """Control: a flag given once is for all controls, else give it once for each."""

    control: tuple[str, ...] | None = each(
        "--list names them (default: what the weights are called, else scribble)", metavar="NAME"
    )
    detector: tuple[str, ...] | None = each("see --list (default: the control's first)", metavar="NAME")
    strength: tuple[float, ...] | None = each("0 is off, 1 as trained (default: 1)")
    start: tuple[float, ...] | None = each("first part of the steps, 0 to 1 (default: 0)")
    end: tuple[float, ...] | None = each("last part of the steps, 0 to 1 (default: 1)")
    branch: tuple[str, ...] | None = each("its weights, or `own` for the model's branch", metavar="FILE")


@dataclass(frozen=True)
class DetectorFlags:
    """What detectors are told, and whether there is anything to detect."""

    preprocess: bool | None = flag(None, "--image is a map", "--no-preprocess", action="store_false")
    low: float | None = flag(None, "canny: an edge goes on above it (default: 100)")
    high: float | None = flag(None, "canny: an edge starts above it (default: 200)")
    invert: Literal["auto", "yes", "no"] | None = flag(None, "scribble: dark on light? (default: auto)")
    threshold: int | None = flag(None, "xdog: 1 to 255, lower draws more (default: 32)")
    param: tuple[str, ...] | None = each(
        "any other, see --list; @FILE reads a text; repeat", metavar="NAME=VALUE"
    )


@dataclass(frozen=True)
class ModelFlags:
    """Which model draws, and how it is run."""

    config: Path | None = flag(None, "default: models/tiny.yaml", metavar="YAML")
    weights: tuple[Path, ...] | None = flag(None, "a base and a control file, or both in one", metavar="FILE")
    quantized: Path | None = flag(None, "of python -m quantize, in place of --weights", metavar="FILE")
    loras: tuple[str, ...] | None = each("merge it (weight: 1); repeat", "--lora", metavar="FILE[:WEIGHT]")
    annotators: Path | None = flag(None, "weights of detectors (default: models/annotators)", metavar="DIR")
    device: str | None = flag(None, "auto, cpu, cuda, cuda:1, mps (default: auto)", metavar="NAME")
    dtype: Literal["auto", "fp32", "fp16", "bf16"] | None = flag(None, "default: auto, fp16 on a GPU")
    save_memory: bool | None = flag(None, "slower, fits into less", action="store_true")
    cuda_graphs: bool | None = flag(None, "on a GPU: record a step once and replay it", action="store_true")


@dataclass(frozen=True)
class OutputFlags:
    """Where results go."""

    out: Path = flag(Path("outputs"), "a folder, or a .png file")
    save_maps: bool = flag(False, "write the control maps too")
    json: bool = flag(False, "the result on stdout for programs; no progress bars")
    list: bool = flag(False, "name controls, detectors and samplers, then stop")


@dataclass(frozen=True)
class GenerateFlags:
    """All flags of a command line."""

    inputs: InputFlags
    request: RequestFlags
    savings: SavingFlags
    control: ControlFlags
    detector: DetectorFlags
    model: ModelFlags
    output: OutputFlags


def parse_flags(argv: list[str] | None, description: str) -> GenerateFlags:
    """Read the command line; SystemExit with one sentence when it is wrong."""
    parser = Parser("python generate.py", description)
    groups = get_type_hints(GenerateFlags)
    for group in groups.values():
        add_flags(parser, group, group.__doc__.rstrip("."))
    args = parser.parse_args(argv)
    return GenerateFlags(**{name: read_flags(group, args) for name, group in groups.items()})


def given(group: Any) -> dict[str, Any]:
    """The flags of a group that were given, by their names."""
    values = {one.name: getattr(group, one.name) for one in fields(group)}
    return {name: value for name, value in values.items() if value is not None}
