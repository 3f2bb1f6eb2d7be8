"""Makes the same pictures by one or more models: same inputs, same prompts, same noise.

    python -m eval generate full=models/tiny.yaml --data held-out --count 40 --out outputs/full
    python -m eval generate int8=models/tiny.yaml:int8.safetensors --data training/fill50k --out outputs/int8

A model is a yaml, a yaml with weights, or a quantized file. --data is a folder of pictures with prompts
beside them (circle.png, circle.txt), one in Fill50k's form, or `held-out`: scenes that no training of ours
has seen.
Pictures go to DIR/NAME/0000.png with their requests in them; maps and right answers lie in DIR/maps and
DIR/truth under the same names. Picture i has the noise of --seed + i. What is there already, from the same
request, files and model, is not made again. Flags of generate.py say how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_type_hints

from app.generate_flags import GenerateFlags, InputFlags, ModelFlags, OutputFlags
from app.provenance import Provenance, digests, load_request, satisfies, write_image
from bench.forms.form import USAGE, Form, parse_forms
from cldm.request import Request
from common.flags import add_flags, flag, read_flags
from common.hashing import sha256_of
from common.shell import Parser, run_command
from eval.materials import HELD_OUT, MAPS, TRUTH, Material, materials
from eval.processes import spread

STOPPED = "stopped; finished pictures stay, and the same command goes on from there"
SIZE = 128  # of held-out scenes, where no --resolution says otherwise
OWN = ("config", "weights", "quantized")  # flags that NAME=MODEL stands for


@dataclass(frozen=True)
class DataFlags:
    """What is made, from what, and where it goes."""

    models: tuple[str, ...] = flag((), f"models: {USAGE}", "models", nargs="+", metavar="NAME=MODEL")
    data: str = flag(HELD_OUT, "folder of pictures, or held-out", metavar="FOLDER")
    count: int = flag(100, "pictures of each model")
    out: Path = flag(Path("outputs/eval-pictures"), "folder", metavar="DIR")
    processes: int = flag(1, "share the work out to so many")


@dataclass(frozen=True)
class Plan:
    """Everything about the pictures but the model; picklable, as other processes get it."""

    data: DataFlags
    flags: GenerateFlags
    things: tuple[Material, ...]

    @property
    def seed(self) -> int:
        """Of picture 0."""
        return self.flags.request.seed or 0

    def request(self, number: int) -> Request:
        """Of picture `number`."""
        from app.generate_request import request_of

        thing = self.things[number]
        detector = replace(self.flags.detector, preprocess=False) if thing.is_map else self.flags.detector
        request = request_of(replace(self.flags, detector=detector), prompt=thing.prompt)
        return replace(request, seed=self.seed + number)

    def provenance(self, form: Form) -> Provenance:
        """Of all pictures of a model; files of weights are part of it by their content."""
        from app.generate_request import provenance_of

        model = replace(
            self.flags.model, config=form.config, weights=form.weights or None, quantized=form.quantized
        )
        base = provenance_of(replace(self.flags, model=model))
        return replace(base, digests={path.name: sha256_of(path) for path in [form.config, *form.files]})


def add_generation_flags(parser: Parser) -> None:
    """Those of the data, then those of generate.py that say how."""
    add_flags(parser, DataFlags)
    for name, group in get_type_hints(GenerateFlags).items():
        if name not in ("inputs", "output"):
            add_flags(parser, group, group.__doc__.rstrip("."))


def read_plan(args: object) -> Plan:
    """What the command line says, with maps and truths laid out; ValueError or OSError in one sentence."""
    groups = get_type_hints(GenerateFlags)
    own = {"inputs": InputFlags(), "output": OutputFlags()}
    flags = GenerateFlags(**{name: own.get(name) or read_flags(kind, args) for name, kind in groups.items()})
    data: DataFlags = read_flags(DataFlags, args)
    _check(data, flags.model)
    if flags.request.num_samples not in (None, 1):
        raise ValueError("--num-samples: each input gives one picture here, --count says how many inputs")
    size = flags.request.resolution or SIZE
    things = materials(data.data, data.count, flags.request.seed or 0, size, data.out)
    return Plan(data, flags, tuple(things))


def _check(data: DataFlags, model: ModelFlags) -> None:
    if given := [name for name in OWN if getattr(model, name) is not None]:
        raise ValueError(f"--{given[0]}: NAME=MODEL says that here, as {USAGE}")
    forms = parse_forms(data.models)
    if taken := next((form.name for form in forms if form.name in (MAPS, TRUTH)), None):
        raise ValueError(f"{taken} is the name of a folder of the inputs: call the model otherwise")
    if data.processes < 1:
        raise ValueError(f"processes={data.processes}: give 1 or more")
    if data.out.exists() and not data.out.is_dir():
        raise NotADirectoryError(f"--out {data.out} is a file: name a folder")


def make(plan: Plan, form: Form) -> int:
    """Make the pictures of a model that are not there yet; how many were."""
    provenance, todo = plan.provenance(form), []
    for number, thing in enumerate(plan.things):
        path = plan.data.out / form.name / f"{thing.name}.png"
        source = replace(provenance, image=(thing.image.as_posix(),))
        if not _is_made(path, plan.request(number), _with_digest(source, thing)):
            todo.append(number)
    if todo:
        spread(plan.data.processes, make_some, plan, form, provenance, tuple(todo))
    return len(plan.things) - len(todo)


def make_some(
    rank: int, world: int, plan: Plan, form: Form, provenance: Provenance, todo: Sequence[int]
) -> None:
    """Make every `world`th of the pictures `todo`, from the `rank`th on, each written before the next."""
    from tqdm import tqdm

    from app.batch import load_pipeline
    from ldm.image import read_image

    mine = todo[rank::world]
    if not mine:
        return
    pipeline = load_pipeline(provenance)
    for number in tqdm(mine, form.name, unit="picture", disable=True if rank else None):
        thing, request = plan.things[number], plan.request(number)
        result = pipeline([read_image(thing.image)] * len(request.controls), request)
        source = _with_digest(replace(provenance, image=(thing.image.as_posix(),)), thing)
        if not thing.is_map:
            _write_map(plan.data.out / MAPS / f"{thing.name}.png", result.maps)
        write_image(plan.data.out / form.name / f"{thing.name}.png", result.images[0], result.request, source)


def _with_digest(source: Provenance, thing: Material) -> Provenance:
    return replace(source, digests={**source.digests, **digests([thing.image])})


def _write_map(path: Path, maps: Sequence) -> None:
    from ldm.image import write_png

    if maps and not path.is_file():
        write_png(path, maps[0])


def _is_made(path: Path, asked: Request, source: Provenance) -> bool:
    try:
        made, made_from = load_request(path)
    except (OSError, ValueError):  # absent, damaged or somebody else's
        return False
    return made_from == source and satisfies(made, asked)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser("python -m eval generate", __doc__)
    add_generation_flags(parser)
    args = parser.parse_args(argv)
    return run_command(lambda: _run(read_plan(args)), stopped=STOPPED)


def _run(plan: Plan) -> str:
    lines = []
    for form in parse_forms(plan.data.models):
        there = make(plan, form)
        lines.append(f"{plan.data.out / form.name}: {len(plan.things) - there} made, {there} there already")
    return "\n".join(lines)
