"""What a run takes: in this process, in turns with others, or in a process of its own.

Runs that are compared take turns (ABC ABC ...), so that whatever else the machine does meets all of them.
Processes stand still while it is not their turn.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from bench.results import ROOT

KIB = 1024  # what /proc counts in
GO = b"go\n"  # a line: pipes are read by lines
SERVE = "from bench.processes import serve; serve()"
LAST_WORDS = 400  # characters of what a process said before it died
Run = Callable[[], Any]


@dataclass(frozen=True)
class Cost:
    """Of one run: seconds by the clock, CPU-seconds of all threads, and bytes at the peak of memory.

    The peak is that of the process's resident set, on a GPU that of torch's own memory there.
    """

    wall: float
    cpu: float
    peak: int


def measured(run: Run, device: str = "cpu") -> tuple[Any, Cost]:
    """What `run` gives, and what it takes."""
    on_gpu = torch.device(device).type == "cuda"
    _forget_peak(on_gpu)
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    if on_gpu:
        torch.cuda.synchronize()  # launched is not done
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return result, Cost(wall, cpu, torch.cuda.max_memory_allocated() if on_gpu else peak_bytes())


def interleaved(runs: Mapping[str, Run], rounds: int, device: str = "cpu") -> dict[str, list[Cost]]:
    """What each run takes in every round, by name; one more round before them warms up."""
    from tqdm import tqdm

    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for _ in tqdm(range(rounds + 1), desc="rounds", disable=None, leave=False):
        for name, run in runs.items():
            costs[name].append(measured(run, device)[1])
    return {name: taken[1:] for name, taken in costs.items()}  # without the round that warmed up


def peak_bytes() -> int:
    """The most memory that this process has had at once, pages of mapped files included; 0 but on Linux."""
    # Not getrusage: its ru_maxrss survives exec, so that a child starts with its parent's peak.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * KIB for line in lines if line.startswith("VmHWM:")), 0)


def _forget_peak(on_gpu: bool) -> None:
    """Let the peak begin anew; where the kernel does not allow it, it is that of all so far."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@dataclass(frozen=True)
class ProcessOptions:
    """threads: as many as torch takes for None. environment: more of it. quiet: what it says is kept for its
    last words, else the user reads it.
    """

    python: Path = Path(sys.executable)
    threads: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    quiet: bool = False


class Worker:
    """A process that has called `function(*arguments)`, which stands still except while it is asked.

    loading: what the call took. result: what it gave, as JSON; None where that can be run. What libraries
    print goes to the standard error. ChildProcessError with its last words where it dies.
    """

    def __init__(self, function: Callable, *arguments: Any, options: ProcessOptions) -> None:
        self._name = f"{function.__name__}{arguments[:1]}"
        self._log = tempfile.TemporaryFile("w+") if options.quiet else None  # noqa: SIM115  lives as long
        threads = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}  # read before torch is
        self._process = subprocess.Popen(
            [str(options.python), "-c", SERVE], cwd=ROOT, env=os.environ | threads | options.environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        task = (_module(function), function.__name__, arguments, options.threads, options.device)
        self._tell(pickle.dumps(task))
        self.loading, self.result = self._answer()
        self._process.send_signal(signal.SIGSTOP)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it may stand still, and hear nothing softer
        self._process.communicate()
        if self._log:
            self._log.close()

    def run(self, settle: int = 0) -> tuple[Cost, Any]:
        """What one run takes, and what it gives.

        settle: untimed runs before it. Whoever stood still finds other processes' data in the caches; within
        a picture one step follows the other.
        """
        self._process.send_signal(signal.SIGCONT)
        for _ in range(settle + 1):
            self._tell(GO)
            answer = self._answer()
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def _tell(self, text: bytes) -> None:
        with suppress(BrokenPipeError):  # there will be no answer, which says more
            self._process.stdin.write(text)
            self._process.stdin.flush()

    def _answer(self) -> tuple[Cost, Any]:
        if line := self._process.stdout.readline():
            cost, result = json.loads(line)
            return Cost(**cost), result
        code, words = self._process.wait(), ""
        if self._log:
            self._log.seek(0)
            words = f": {' '.join(self._log.read()[-LAST_WORDS:].split())}"
        raise ChildProcessError(f"the process of {self._name} ended with code {code}{words}")


def apart(function: Callable, *arguments: Any, options: ProcessOptions | None = None) -> Any:
    """`function(*arguments)`, as JSON, by a process that gives its memory back.

    ChildProcessError if it dies.
    """
    with Worker(function, *arguments, options=options or ProcessOptions()) as worker:
        return worker.result


def serve() -> None:
    """What a worker does: call the function it is told, then run what that gave whenever it is asked."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print; answers must stay alone
    module, name, arguments, threads, device = pickle.load(sys.stdin.buffer)
    if threads:
        torch.set_num_threads(threads)
    result, cost = measured(lambda: getattr(import_module(module), name)(*arguments), device)
    run = result if callable(result) else None
    answers.write(json.dumps([asdict(cost), None if run else result]) + "\n")
    while run and sys.stdin.buffer.readline() == GO:
        result, cost = measured(run, device)
        answers.write(json.dumps([asdict(cost), result]) + "\n")


def _module(function: Callable) -> str:
    """Where a process finds `function`, also that of the command which runs now."""
    main = sys.modules["__main__"].__spec__
    return main.name if function.__module__ == "__main__" and main else function.__module__
