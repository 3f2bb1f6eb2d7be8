"""Where a measurement comes from: command, commit, date, machine, libraries, yaml and weights."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.results import ROOT, Line
from common.hashing import sha256_of

CPUINFO = Path("/proc/cpuinfo")
KINDS = {"family": "cpu family", "model": "model"}  # of a processor, as CPUINFO calls them
# Whose versions are noted, where installed.
PACKAGES = ("torch", "numpy", "torchmetrics", "transformers", "diffusers", "openvino", "nncf", "torchao")


def origin_of(
    bench: str, setting: Mapping[str, Any], command: str, device: str, files: Iterable[Path] = ()
) -> Line:
    """What all rows of a run share.

    device: `cpu`, or how torch calls a GPU. files: that the numbers depend on, such as `model_files` gives.
    """
    setting = json.loads(json.dumps(setting))  # as it will be read again
    return {
        "bench": bench,
        "setting": setting,
        "command": command,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": describe(device),
        "versions": _versions(),
        "files": {place_of(path): sha256_of(path) for path in files},
    }


def model_files(config: Path, weights: Iterable[Path] = ()) -> list[Path]:
    """What a model is made of: its yaml with those that it is based on, its weights (default: the yaml's)."""
    from ldm.config import config_files, read_config

    own = [config.parent / name for name in read_config(config).get("weights", [])]
    return [*config_files(config), *(weights or (path for path in own if path.is_file()))]


def place_of(path: Path) -> str:
    """How rows call a file: by its place in this project, or by its name alone where it lies elsewhere."""
    full = path.resolve()
    return full.relative_to(ROOT).as_posix() if full.is_relative_to(ROOT) else path.name


def changed_files(line: Line) -> list[str]:
    """Which of this project's files are not what they were when the line was measured; others are trusted."""
    inside = {name: digest for name, digest in line["files"].items() if "/" in name}
    return [
        name
        for name, digest in inside.items()
        if (ROOT / name).parent.is_dir() and not ((ROOT / name).is_file() and _digest(ROOT / name) == digest)
    ]


def describe(device: str) -> dict[str, Any]:
    """The name of the machine's processor with the threads that torch takes, or that of its GPU."""
    import torch

    if torch.device(device).type == "cuda":
        return {"name": torch.cuda.get_device_name(device), "threads": None}
    return {"name": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def device_words(device: Mapping[str, Any]) -> str:
    """Such as `AMD EPYC, 2 threads`."""
    return f"{device['name']}, {device['threads']} threads" if device["threads"] else device["name"]


def _processor() -> str:
    """Such as `AMD EPYC (family 26, model 17)`: rented machines tell no more than the brand by name."""
    text = CPUINFO.read_text() if CPUINFO.is_file() else ""
    told = dict(re.findall(r"^([a-z ]+?)\s*: (.*)$", text.partition("\n\n")[0], re.MULTILINE))
    if "model name" not in told:
        return platform.processor() or platform.machine()
    kind = [f"{short} {told[name]}" for short, name in KINDS.items() if name in told]
    return f"{told['model name'].strip()}{' (' + ', '.join(kind) + ')' if kind else ''}"


_known: dict[tuple[Path, int, int], str] = {}  # a table asks for the same weights once a row


def _digest(path: Path) -> str:
    status = path.stat()
    key = (path, status.st_size, status.st_mtime_ns)
    if key not in _known:
        _known[key] = sha256_of(path)
    return _known[key]


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # a bare copy of the tree
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
