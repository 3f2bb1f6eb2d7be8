"""What is this file? Said from its header alone: gigabytes take no longer than kilobytes.

    python -m checkpoints.inspect FILE [FILE ...] [--json]

Files of any form and folders of diffusers; also those that do not load here, with what to take instead. Exit
codes: 0; 1 where one of them is not there, damaged or no weights file; 2 for a wrong command line; 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from checkpoints.diffusers.folder import find_components, read_settings
from checkpoints.files.headers import Header, TensorHeader, read_header
from checkpoints.files.kinds import printable
from checkpoints.inspect.lora import describe_lora
from checkpoints.inspect.model import PREDICTIONS, Inspection, PartSummary, describe_model
from checkpoints.names.controls import control_kind
from checkpoints.names.diffusers import COMPONENTS
from checkpoints.names.foreign import Family, is_lora, neighbour, unusual_lora

FORMATS = {"safetensors": "safetensors", "zip": "torch zip", "legacy": "torch before 1.6"}
SCHEDULER = "scheduler/scheduler_config.json"
NOT_FOUND, INTERRUPTED = 1, 130
INDENT = "  "
LONGEST_LINE = 1000
MIB = 2**20


def inspect(path: str | Path) -> Inspection:
    """What lies at `path`: a weights file of any form, or a folder of diffusers.

    Raises FileNotFoundError, or ValueError in one sentence for what is neither, is damaged or is hostile.
    """
    path = Path(path)
    if path.is_dir() and find_components(path):
        return _describe_folder(path)
    header = read_header(path)
    form, names = FORMATS[header.kind], [*header.tensors, *header.nested]
    if other := neighbour(names) or unusual_lora(names):
        return _describe_neighbour(path, header, form, other)
    return (describe_lora if is_lora(names) else describe_model)(path, header, form)


def _describe_folder(folder: Path) -> Inspection:
    tensors: dict[str, TensorHeader] = {}
    size = 0
    for part, component in find_components(folder).items():
        for file in component.files:
            header = read_header(file)
            size += header.size
            tensors |= {COMPONENTS[part].prefix + name: one for name, one in header.tensors.items()}
    stored = read_settings(folder / SCHEDULER).get("prediction_type")
    predicts = stored and f"{PREDICTIONS.get(stored, stored)}, says {SCHEDULER}"
    return describe_model(folder, Header("folder", size, tensors), "diffusers folder", predicts)


def _describe_neighbour(path: Path, header: Header, form: str, other: Family) -> Inspection:
    return Inspection(
        path=str(path),
        what=other.what,
        format=form,
        size=header.size,
        parts=(PartSummary.of("all of it", header.tensors.values()),) if header.tensors else (),
        control=control_kind(path),
        notes=(f"it does not load here: {other.instead}",),
    )


def to_text(found: Inspection) -> str:
    """Lines for people."""
    rows = [("what", found.what), ("format", f"{found.format}, {_mebibytes(found.size)}")]
    rows += [(part.name, _numbers(part)) for part in found.parts]
    rows += [("beside", _beside(found.beside))] if found.beside else []
    rows += [("predicts", found.predicts)] if found.predicts else []
    rows += [("control", f"{found.control}, says its name")] if found.control else []
    rows += [("missing", line) for line in found.missing] + [("note", line) for line in found.notes]
    width = max(len(label) for label, _ in rows)
    lines = (f"{INDENT}{label:{width}}  {printable(text, LONGEST_LINE)}" for label, text in rows)
    return "\n".join([found.path, *lines])


def _numbers(part: PartSummary) -> str:
    return f"{part.parameters:>13,} parameters, {_mebibytes(part.nbytes):>10}, {', '.join(part.dtypes)}"


def _beside(entries: dict[str, int]) -> str:
    return ", ".join(f"{name} ({_mebibytes(size)})" if size else name for name, size in entries.items())


def _mebibytes(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m checkpoints.inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="weights file, or folder of diffusers")
    parser.add_argument("--json", action="store_true", help="for programs: a list with one object for each")
    args = parser.parse_args(argv)
    try:
        return _inspect_all(args.files, as_json=args.json)
    except KeyboardInterrupt:
        return INTERRUPTED


def _inspect_all(files: list[str], *, as_json: bool) -> int:
    found, failed = [], 0
    for file in files:
        try:
            found.append(inspect(file))
        except (ValueError, OSError) as error:
            sentence = f"{error.filename}: {error.strerror}" if getattr(error, "strerror", None) else error
            sys.stderr.write(f"{sentence}\n")
            failed = NOT_FOUND
        else:
            if not as_json:
                sys.stdout.write(to_text(found[-1]) + "\n")
    if as_json:
        sys.stdout.write(json.dumps([asdict(one) for one in found], indent=1, ensure_ascii=False) + "\n")
    return failed
