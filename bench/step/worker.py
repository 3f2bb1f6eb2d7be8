"""One contender of `bench.step` in a process of its own, told through its standard input when to compute.

    python -m bench.step.worker NAME SETTING prepare
    python -m bench.step.worker NAME SETTING serve FILE

Serving answers one line of JSON about loading, then one for each line "go"; anything else ends it. FILE gets
what was computed first. What libraries print goes to the standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bench.memory.load_memory import peak_bytes
from bench.step.contenders import CPU
from bench.step.cuda import CUDA
from bench.step.setting import Contender, Setting

GO = "go"


def contenders_on(device: str) -> Mapping[str, Contender]:
    """Who takes part on `device`, by name; ValueError for one that is neither cpu nor cuda."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r}: use cpu or cuda")
    return CUDA if device == "cuda" else CPU


def encode_setting(setting: Setting) -> str:
    """For the command line."""
    return json.dumps(vars(setting), default=str)


def decode_setting(text: str) -> Setting:
    """What `encode_setting` wrote."""
    found = json.loads(text)
    paths = {name: Path(found[name]) for name in ("config", "folder")}
    return Setting(**{**found, **paths, "rules": tuple(found["rules"])})


def measured(run: Callable[[], Any], device: str = "cpu") -> tuple[Any, dict[str, float]]:
    """What `run` gives; seconds by the clock, CPU-seconds of all threads, and bytes at the peak of memory.

    The peak is that of the process's resident set, on a card that of torch's own memory there.
    """
    _forget_peak(device)
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    if device == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes()
    return result, {"wall": wall, "cpu": cpu, "peak": peak}


def serve(contender: Contender, setting: Setting, output: Path) -> None:
    """Load, and compute whenever told to."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(setting.threads)
    run, about = measured(lambda: contender.load(setting), setting.device)
    answers.write(json.dumps(about) + "\n")
    while sys.stdin.readline().strip() == GO:
        with torch.inference_mode():
            (result, parts), about = measured(run, setting.device)
        if not output.is_file():
            torch.save(result.float().cpu(), output)
        answers.write(json.dumps(about | {"parts": dict(parts)}) + "\n")


def _forget_peak(device: str) -> None:
    """Let the peak begin anew; where the kernel does not allow it, it is that of all so far."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    name, text, task, *rest = sys.argv[1:] if argv is None else argv
    setting = decode_setting(text)
    contender = contenders_on(setting.device)[name]
    if task == "prepare":
        contender.prepare(setting)
    else:
        serve(contender, setting, Path(rest[0]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
