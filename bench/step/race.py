"""Processes that compute in turns: each is told to run once while all the others stand still.

A round asks each once, in order (ABC ABC ...), so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.step.setting import Setting
from bench.step.worker import GO, contenders_on, encode_setting

ROOT = Path(__file__).parents[2]
LAST_WORDS = 400  # characters of what a process said before it died


class Worker:
    """The loaded process of one contender; it stands still except while it is asked."""

    def __init__(self, name: str, setting: Setting, python: Path, folder: Path) -> None:
        self.name, self.output = name, folder / f"{name}.pt"
        self._log = (folder / f"{name}.log").open("w+")
        command, environment = _call(name, setting, python)
        self._process = subprocess.Popen(
            [*command, "serve", str(self.output)], cwd=ROOT, env=environment, text=True, stderr=self._log,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.loading = self._answer()
        self._process.send_signal(signal.SIGSTOP)

    def run(self, settle: int = 0) -> dict[str, Any]:
        """Seconds, CPU-seconds and peak bytes of one run. RuntimeError with its last words if it died.

        settle: untimed runs before it. Whoever stood still finds other processes' data in the caches; within
        a picture one step follows the other.
        """
        self._process.send_signal(signal.SIGCONT)
        for _ in range(settle):
            self._ask()
        measured = self._ask()
        self._process.send_signal(signal.SIGSTOP)
        return measured

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _ask(self) -> dict[str, Any]:
        try:
            self._process.stdin.write(f"{GO}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._died()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self._died()
        return json.loads(line)

    def _died(self) -> None:
        code = self._process.wait()
        self._log.seek(0)
        words = " ".join(self._log.read()[-LAST_WORDS:].split())
        raise RuntimeError(f"{self.name} ended with code {code}: {words}")


def prepare(names: Iterable[str], setting: Setting, python: Mapping[str, Path]) -> None:
    """Make what the contenders need on disk, each in a process that gives its memory back.

    RuntimeError where one fails.
    """
    for name in names:
        if all(path.is_file() for path in contenders_on(setting.device)[name].files(setting)):
            continue
        command, environment = _call(name, setting, python[name])
        done = subprocess.run(
            [*command, "prepare"], cwd=ROOT, env=environment, stdout=sys.stderr, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{name}: its files could not be made, code {done.returncode}")


@contextmanager
def workers(
    names: Iterable[str], setting: Setting, python: Mapping[str, Path], folder: Path
) -> Iterator[list[Worker]]:
    """A loaded process for each contender; all end with the block."""
    with ExitStack() as stack:
        started = []
        for name in names:
            started.append(Worker(name, setting, python[name], folder))
            stack.callback(started[-1].close)
        yield started


def _call(name: str, setting: Setting, python: Path) -> tuple[list[str], dict[str, str]]:
    contender = contenders_on(setting.device)[name]
    environment = os.environ | {"OMP_NUM_THREADS": str(setting.threads), **contender.environment}
    return [str(python), "-m", "bench.step.worker", name, encode_setting(setting)], environment
