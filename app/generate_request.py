"""From the command line to a request: what a flag means for one control, for all of them, and for a detector.

A flag that was not given is None and leaves the request's default, or what the picture of --from was made
with, as it is.
"""

import inspect
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.provenance import Source, digests, read_made
from checkpoints.lora.names import parse_lora
from checkpoints.names.controls import file_stem
from cldm.controls import CONTROLS, Control, branch_names, control_of_file
from cldm.request import ControlInput, Request

REQUEST_FLAGS = (
    "prompt", "negative_prompt", "seed", "steps", "sampler", "eta", "scale", "resolution", "num_samples",
    "guess_mode", "guided_control", "denoise", "clip_skip", "guidance_start", "guidance_end", "reuse_every",
    "reuse_cut", "control_every",
)  # fmt: skip
CONTROL_FLAGS = ("control", "strength", "start", "end", "branch")
DETECTOR_FLAGS = ("low", "high", "invert", "threshold")
SOURCE_FLAGS = (
    "image", "init", "mask", "config", "weights", "quantized", "branches", "loras", "device", "dtype",
    "save_memory", "cuda_graphs",
)  # fmt: skip
INVERT = {"auto": None, "yes": True, "no": False}
OWN_BRANCH = "own"


def recall(args: Namespace) -> tuple[Namespace, Request | None]:
    """The flags, completed by what the picture of --from was made with, and its request; None without --from.

    ValueError when that picture does not say, or when its input pictures are gone or no longer the same.
    """
    if args.from_picture is None:
        return args, None
    request, source = read_made(args.from_picture)
    old = vars(source)
    taken = {name: old[name] for name in SOURCE_FLAGS if getattr(args, name) is None}
    if args.batch_dir is not None:
        taken.pop("image", None)
    for name in ("image", "init", "mask"):
        for path in _listed(taken.get(name)):
            _check_unchanged(path, name, source.digests)
    return Namespace(**{**vars(args), **taken}), request


def request_from_flags(args: Namespace, base: Request | None = None, prompt: str | None = None) -> Request:
    """The request of the flags over `base`; `prompt` replaces theirs. ValueError in one sentence."""
    given = {name: getattr(args, name) for name in REQUEST_FLAGS if getattr(args, name) is not None}
    if prompt is not None:
        given["prompt"] = prompt
    controls = controls_from_flags(args, base.controls if base else (ControlInput(),))
    if base is not None:
        return replace(base, controls=controls, **given)
    return Request(**{"prompt": "", **given}, controls=controls)


def controls_from_flags(args: Namespace, base: Sequence[ControlInput]) -> tuple[ControlInput, ...]:
    """As many controls as the flag given most often; each flag once for all or once for each."""
    lists: dict[str, Sequence[Any]] = {
        f"--{name}": values for name in ("image", *CONTROL_FLAGS) if (values := getattr(args, name))
    }
    counts = {"--from": len(base), **{flag: len(values) for flag, values in lists.items()}}
    most = max(counts, key=lambda flag: counts[flag])
    for flag, count in counts.items():
        if count not in (1, counts[most]):
            raise ValueError(
                f"{most} stands for {counts[most]} controls, {flag} for {count}: "
                f"give a flag once for all controls or once for each"
            )
    detector = _detector_params(args)
    controls = []
    for index in range(counts[most]):
        values = {name: _at(lists[f"--{name}"], index) for name in CONTROL_FLAGS if f"--{name}" in lists}
        if told := _told_by_name(args, values):
            values.setdefault("control", told)
        if "branch" in values:
            values["branch"] = None if values["branch"] == OWN_BRANCH else file_stem(values["branch"])
        if args.preprocess is not None:
            values["preprocess"] = args.preprocess
        controls.append(replace(_at(base, index), **values))
    _check_detectors(detector, controls)
    return tuple(_with_params(control, detector) for control in controls)


def images_from_flags(args: Namespace, controls: int) -> tuple[Path, ...]:
    """One picture for each control. ValueError without any."""
    if not args.image:
        raise ValueError("no picture: give --image FILE, or --batch-dir FOLDER for many")
    return tuple(Path(_at(args.image, index)) for index in range(controls))


def source_from_flags(args: Namespace) -> Source:
    """What the pictures will depend on besides the request; image and digests are filled in for each job."""
    files = [path for path in (*(args.branches or ()), *(args.branch or ())) if path != OWN_BRANCH]
    return Source(
        init=_text(args.init),
        mask=_text(args.mask),
        config=_text(args.config),
        weights=tuple(map(_text, args.weights or ())),
        quantized=_text(args.quantized),
        branches=tuple(map(_text, branch_names(files).values())),
        loras=tuple(_lora(one) for one in args.loras or ()),
        device=args.device or "auto",
        dtype=args.dtype or "auto",
        save_memory=bool(args.save_memory),
        cuda_graphs=bool(args.cuda_graphs),
    )


def detector_options(control: Control) -> list[str]:
    """The names of what the control's detector can be told."""
    if control.annotate is None:
        return []
    return [name for name in inspect.signature(control.annotate).parameters if name in DETECTOR_FLAGS]


def _detector_params(args: Namespace) -> dict[str, Any]:
    params = {name: getattr(args, name) for name in DETECTOR_FLAGS if getattr(args, name) is not None}
    if "invert" in params:
        params["invert"] = INVERT[params["invert"]]
    return params


def _check_detectors(params: Mapping[str, Any], controls: Sequence[ControlInput]) -> None:
    """ValueError where a detector is not here, or an option belongs to none of those used."""
    detected = [one.control for one in controls if one.preprocess]
    for name in detected:
        if CONTROLS[name].annotate is None:
            shows = CONTROLS[name].shows
            raise ValueError(
                f"{name} has no detector here: give its map ({shows}) as --image and --no-preprocess"
            )
    used = {option for name in detected for option in detector_options(CONTROLS[name])}
    for name in params:
        if name not in used:
            users = ", ".join(key for key, control in CONTROLS.items() if name in detector_options(control))
            got = " and ".join(detected) or "a ready-made map"
            raise ValueError(f"--{name} says nothing to {got}: it is an option of {users}")


def _with_params(control: ControlInput, params: Mapping[str, Any]) -> ControlInput:
    if not control.preprocess:
        return replace(control, params={})
    asked = {**control.params, **params}
    options = detector_options(CONTROLS[control.control])
    return replace(control, params={name: value for name, value in asked.items() if name in options})


def _check_unchanged(path: str, flag: str, known: Mapping[str, str]) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"the picture was made from {path}, which is not there: give it by --{flag}")
    if digests([path]).get(path) != known.get(path):
        raise ValueError(f"{path} is not what it was when the picture was made: give the old one by --{flag}")


def _told_by_name(args: Namespace, values: Mapping[str, Any]) -> str | None:
    """The control that a control's weights are named after, where they are given on the command line."""
    branch = values.get("branch", OWN_BRANCH)
    files = [branch] if branch != OWN_BRANCH else args.weights or () if args.from_picture is None else ()
    return next(filter(None, map(control_of_file, files)), None)


def _lora(text: str) -> str:
    path, weight = parse_lora(text)
    return f"{_text(path)}:{weight}"


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index if len(values) > 1 else 0]


def _listed(value: Any) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _text(path: str | Path | None) -> str | None:
    return None if path is None else Path(path).as_posix()
