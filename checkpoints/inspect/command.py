"""What is this file? Said from its header alone: gigabytes take no longer than kilobytes.

    python -m checkpoints.inspect FILE [FILE ...] [--json]

Files of any form and folders of diffusers; also those that do not load here, with what to take instead. Exit
codes: 0; 2 where one of them is not there, damaged or no weights file; 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from checkpoints.checkpoint import open_checkpoint
from checkpoints.inspect.describe import Inspection, describe, describe_lora, describe_model
from checkpoints.names.recognize import control_kind, foreign_format, is_lora
from common.atomic import MIB
from common.shell import DONE, Parser, printable, run_command, say, sentence

INDENT = "  "  # below the name of the file
LONGEST_LINE = 1000  # characters: metadata of strangers may be megabytes


def inspect(path: str | Path) -> Inspection:
    """What lies at `path`: a weights file of any form, or a folder of diffusers.

    Errors as `checkpoints.checkpoint.open_checkpoint`.
    """
    checkpoint = open_checkpoint(path)
    names = [*checkpoint.header.tensors, *checkpoint.header.nested]  # adapters nest theirs deeper
    if other := foreign_format(names):
        parts = {"all of it": checkpoint.header.tensors.values()}
        notes = (f"it does not load here: {other.instead}",)
        return describe(checkpoint, other.what, parts, control=control_kind(checkpoint.path), notes=notes)
    return describe_lora(checkpoint) if is_lora(names) else describe_model(checkpoint)


def to_text(found: Inspection) -> str:
    """Lines for people."""
    rows = [("what", found.what), ("format", f"{found.format}, {_mebibytes(found.size)}")]
    for part in found.parts:
        numbers = f"{part.parameters:>13,} parameters, {_mebibytes(part.nbytes):>10}"
        rows.append((part.name, f"{numbers}, {', '.join(part.dtypes)}"))
    beside = (f"{name} ({_mebibytes(size)})" if size else name for name, size in found.beside.items())
    rows += [("beside", ", ".join(beside))] if found.beside else []
    rows += [("predicts", found.predicts)] if found.predicts else []
    rows += [("control", f"{found.control}, says its name")] if found.control else []
    rows += [("missing", line) for line in found.missing] + [("note", line) for line in found.notes]
    width = max(len(label) for label, _ in rows)
    lines = (f"{INDENT}{label:{width}}  {printable(text, LONGEST_LINE)}" for label, text in rows)
    return "\n".join([found.path, *lines])


def _mebibytes(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser("-m checkpoints.inspect", __doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="weights file, or folder of diffusers")
    parser.add_argument("--json", action="store_true", help="for programs: a list with one object for each")
    args = parser.parse_args(argv)
    return run_command(lambda: _inspect_all(args.files, as_json=args.json))


def _inspect_all(files: list[str], *, as_json: bool) -> int:
    found, code = [], DONE
    for file in files:
        try:
            found.append(inspect(file))
        except (ValueError, OSError) as error:
            code = say(sentence(error))  # the other files are still told of
        else:
            if not as_json:
                sys.stdout.write(to_text(found[-1]) + "\n")
    if as_json:
        sys.stdout.write(json.dumps([asdict(one) for one in found], indent=1, ensure_ascii=False) + "\n")
    return code
