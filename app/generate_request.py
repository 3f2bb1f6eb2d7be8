"""From flags to jobs: what a flag means for one control, for all of them, and for a detector.

A flag that was not given leaves the request's default, or what the image of --from was made with, as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from annotator.detector import TEXT, Param
from annotator.registry import DETECTORS
from app.batch import GenerationJob, folder_jobs
from app.generate_flags import DetectorFlags, GenerateFlags, InputFlags, ModelFlags, given
from app.provenance import Provenance, check_out, digests, load_request
from checkpoints.lora.names import parse_lora
from checkpoints.names.recognize import file_stem
from cldm.controls import branch_names, check_ready, control_of_file, pick_detector
from cldm.request import ControlInput, Request

OWN_BRANCH = "own"


def plan_jobs(flags: GenerateFlags) -> tuple[list[GenerationJob], Provenance]:
    """What is to be made from what, checked as far as that goes without the model.

    ValueError or OSError in one sentence for flags that do not fit each other, or files that are not there.
    """
    inputs, out = flags.inputs, flags.output.out
    if inputs.image and inputs.batch_dir:
        raise ValueError("--image and --batch-dir are two ways to name the pictures: give one of them")
    if inputs.batch_dir and out.resolve() == inputs.batch_dir.resolve():
        raise ValueError(f"--out {out} is the folder of the input pictures: choose another folder")
    request, origin = None, None
    if inputs.from_image is not None:
        request, origin = load_request(inputs.from_image)
        _check_unchanged(origin, inputs)
    provenance = provenance_of(flags, origin)
    jobs = _jobs(flags, request, origin)
    changes_image = provenance.mask or any(job.request.denoise < 1 for job in jobs)
    if changes_image and not provenance.init:
        raise ValueError("--mask and --denoise below 1 change an existing picture: give it by --init FILE")
    if provenance.cuda_graphs and any(job.request.reuse_every > 1 for job in jobs):
        raise ValueError("--cuda-graphs replays whole steps, --reuse-every leaves parts out: give one")
    folder = None if provenance.annotators is None else Path(provenance.annotators)
    for control in {one.control: one for job in jobs for one in job.request.controls}.values():
        if control.preprocess:
            check_ready(control.control, pick_detector(control.control, control.detector), folder)
    images = [path for job in jobs for path in job.images]
    check_out(out, images, sum(job.request.num_samples for job in jobs))
    return jobs, provenance


def request_of(flags: GenerateFlags, base: Request | None = None, prompt: str | None = None) -> Request:
    """The request of the flags over `base`; `prompt` replaces theirs. ValueError in one sentence."""
    values = given(flags.request) | given(flags.savings)
    if prompt is not None:
        values["prompt"] = prompt
    values["controls"] = _controls(flags, base.controls if base else None)
    return replace(base, **values) if base else Request(**{"prompt": "", **values})


def provenance_of(flags: GenerateFlags, base: Provenance | None = None) -> Provenance:
    """What images depend on besides the request, over `base`; each job fills in image and digests."""
    values = {"init": flags.inputs.init, "mask": flags.inputs.mask}
    pictures = {name: _text(value) for name, value in values.items() if value is not None}
    model = model_provenance(flags.model, flags.control.branch or (), base)
    return replace(model, **pictures, image=(), digests={})


def model_provenance(
    flags: ModelFlags, branches: Iterable[str | Path], base: Provenance | None = None
) -> Provenance:
    """The files of a model and how it is run, over `base`; branches: further control branches."""
    base, values = base or Provenance(), given(flags)
    if "loras" in values:
        pairs = map(parse_lora, values["loras"])
        values["loras"] = [f"{Path(path).as_posix()}:{weight}" for path, weight in pairs]
    texts = {name: _text(value) for name, value in values.items()}
    files = [Path(path) for path in branches if path != OWN_BRANCH]
    return replace(base, **texts, branches=_text(branch_names([*base.branches, *files]).values()))


def _jobs(flags: GenerateFlags, base: Request | None, origin: Provenance | None) -> list[GenerationJob]:
    if (folder := flags.inputs.batch_dir) is not None:
        prompt = flags.request.prompt
        if prompt is None and (base or flags.request.guess_mode):
            prompt = base.prompt if base else ""
        return folder_jobs(folder, lambda own: request_of(flags, base, own), prompt)
    request = request_of(flags, base)
    images = flags.inputs.image or tuple(map(Path, origin.image if origin else ()))
    if not images:
        raise ValueError("no picture: give --image FILE, or --batch-dir FOLDER for many")
    one_each = tuple(_at(images, index) for index in range(len(request.controls)))
    return [GenerationJob("+".join(dict.fromkeys(path.stem for path in one_each)), one_each, request)]


def _check_unchanged(origin: Provenance, inputs: InputFlags) -> None:
    """ValueError or FileNotFoundError where an image that is not given anew is no longer what it was."""
    taken = {"init": origin.init, "mask": origin.mask}
    paths = [(name, path) for name, path in taken.items() if path and not getattr(inputs, name)]
    if not (inputs.image or inputs.batch_dir):
        paths += [("image", path) for path in origin.image]
    for name, path in paths:
        if not Path(path).is_file():
            words = f"the picture was made from {path}, which is not there"
            raise FileNotFoundError(f"{words}: give it by --{name}")
        if digests([path]).get(path) != origin.digests.get(path):
            raise ValueError(f"{path} is not what it was when the picture was made: give the old --{name}")


def _controls(flags: GenerateFlags, base: Sequence[ControlInput] | None) -> tuple[ControlInput, ...]:
    """As many controls as the flag given most often; each flag once for all or once for each."""
    values, old = given(flags.control), base or (ControlInput(),)
    count = _count({"from": old, "image": flags.inputs.image or (), **values})
    asked = _params(flags.detector)
    # Weights say by their names what they were trained for; those of --from have said it already.
    weights = flags.model.weights or () if base is None else ()
    controls = []
    for index in range(count):
        own = {name: _at(value, index) for name, value in values.items()}
        branch = own.get("branch", OWN_BRANCH)
        files = weights if branch == OWN_BRANCH else [branch]
        if told := next(filter(None, map(control_of_file, files)), None):
            own.setdefault("control", told)
        if "branch" in own:
            own["branch"] = None if branch == OWN_BRANCH else file_stem(branch)
        if flags.detector.preprocess is not None:
            own["preprocess"] = flags.detector.preprocess
        controls.append(_steered(_at(old, index), own, asked))
    _check_used(asked, controls)
    return tuple(controls)


def _params(flags: DetectorFlags) -> dict[str, str]:
    """What detectors are told, as it was typed."""
    values = given(flags)
    asked = {name: str(value) for name, value in values.items() if name not in ("preprocess", "param")}
    for word in values.get("param", ()):
        name, sign, value = word.partition("=")
        if not (name and sign):
            raise ValueError(f"--param {word}: write it like NAME=VALUE, such as factor=4")
        asked[name] = value
    return asked


def _steered(old: ControlInput, own: Mapping[str, Any], asked: Mapping[str, str]) -> ControlInput:
    """`old` with what its flags say; of `asked` and of the old parameters, those that its detector takes."""
    merged = {"control": old.control, "preprocess": old.preprocess, "detector": old.detector, **own}
    if not merged["preprocess"]:
        if "detector" in own:
            raise ValueError(
                f"--detector {own['detector']} and --no-preprocess contradict each other: give one"
            )
        return replace(old, **(own | {"detector": None, "params": {}}))
    if merged["control"] != old.control and "detector" not in own:
        merged["detector"] = None  # the old one may be none of the new control's
    detector = pick_detector(merged["control"], merged["detector"])
    known = DETECTORS[detector].params
    params = {name: value for name, value in old.params.items() if name in known}
    params |= {name: _parsed(known[name], name, value) for name, value in asked.items() if name in known}
    return replace(old, **(own | {"detector": merged["detector"], "params": params}))


def _parsed(param: Param, name: str, text: str) -> Any:
    if param.kind == TEXT and text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{text[1:]} is not UTF-8 text: {name} is {param.help}") from None
    return param.parsed(name, text)


def _check_used(asked: Mapping[str, str], controls: Sequence[ControlInput]) -> None:
    """ValueError where an option belongs to none of the detectors that are used."""
    detectors = [pick_detector(one.control, one.detector) for one in controls if one.preprocess]
    used = set().union(*(DETECTORS[name].params for name in detectors))
    for name in asked:
        if name not in used:
            users = ", ".join(key for key, one in DETECTORS.items() if name in one.params) or "no detector"
            got = " and ".join(detectors) or "a ready-made map"
            flag = f"--{name}" if hasattr(DetectorFlags, name) else f"--param {name}"
            raise ValueError(f"{flag} says nothing to {got}: it is an option of {users}")


def _count(lists: Mapping[str, Sequence[Any]]) -> int:
    counts = {f"--{name}": len(values) for name, values in lists.items() if values}
    most = max(counts, key=lambda flag: counts[flag])
    for flag, count in counts.items():
        if count not in (1, counts[most]):
            words = f"{most} stands for {counts[most]} controls, {flag} for {count}"
            raise ValueError(f"{words}: give a flag once for all controls or once for each")
    return counts[most]


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index if len(values) > 1 else 0]


def _text(value: Any) -> Any:
    """Paths as they are stored."""
    if isinstance(value, str | bool):
        return value
    return value.as_posix() if isinstance(value, Path) else tuple(map(_text, value))
