"""What all commands share: the parser, one sentence for a mistake, exit codes, Ctrl-C that counts.

Exit codes: 0 done; 1 a bar or a check was not met; 2 a user's mistake; 130 stopped by Ctrl-C or SIGTERM.
Nothing heavy is imported here, so that every --help answers at once.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

DONE, NOT_MET, USER_ERROR = 0, 1, 2  # 2 is argparse's own for a wrong command line
INTERRUPTED = 130  # 128 + SIGINT, as shells count
MISTAKES = (ValueError, OSError, FloatingPointError)  # a user's, in one sentence
# Torch says it in other words for each kind of memory; on the CPU it is a plain RuntimeError.
OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "insufficient memory",  # OpenCV
    "can't allocate memory",
    "cannot allocate memory",
)
QUOTED = 3  # names in a message
LONGEST = 120  # characters shown of one name; those of tensors of Stable Diffusion have less than 100


class Stopped(Exception):
    """The user ended the run in good order; the sentence says what is kept and how to go on."""


class Parser(argparse.ArgumentParser):
    """Keeps the line breaks of its description and says what is wrong with a command line in one sentence."""

    def __init__(self, prog: str, description: str | None = None, **options: Any) -> None:
        ours = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        prog = f"python {prog.removeprefix('python ')}"  # a subcommand's begins with its command's
        super().__init__(prog=prog, description=description, **(ours | options))

    def error(self, message: str) -> NoReturn:
        """Exit with the sentence."""
        self.exit(USER_ERROR, f"{message}; {self.prog} --help lists everything\n")


def run_command(
    act: Callable[[], object],
    *,
    stopped: str | Callable[[], str] = "stopped; nothing was written",
    out_of_memory: str = "take a smaller batch or resolution",
) -> int:
    """Run `act` and return the exit code.

    act: returns an exit code, or what is printed for code 0. stopped: the sentence after Ctrl-C.
    out_of_memory: what helps then. A mistake becomes one sentence on stderr, a fault of the program keeps its
    traceback.
    """
    with _remembered_interrupt() as interrupted:
        try:
            result = act()
            if isinstance(result, int):
                return result
            if result is not None:
                sys.stdout.write(f"{result}\n")
            return DONE
        except Stopped as error:
            return say(str(error), INTERRUPTED)
        except (KeyboardInterrupt, Exception) as error:
            if interrupted or isinstance(error, KeyboardInterrupt):
                return say(stopped if isinstance(stopped, str) else stopped(), INTERRUPTED)
            if is_out_of_memory(error):
                return say(f"out of memory: {out_of_memory}", USER_ERROR)
            if isinstance(error, MISTAKES):
                return say(sentence(error), USER_ERROR)
            raise


def say(text: object, code: int = USER_ERROR) -> int:
    """Write a line to stderr, past any progress bar, and return `code`."""
    sys.stderr.write(f"{text}\n")
    return code


def sentence(error: Exception) -> str:
    """One line, whatever raised it; the system's own errors lose their number and say what helps."""
    if isinstance(error, OSError) and error.strerror:
        cure = ": free some space, then repeat the command" if error.errno == errno.ENOSPC else ""
        return f"{error.filename}: {error.strerror}{cure}" if error.filename else f"{error.strerror}{cure}"
    text = str(error).strip()
    if "DataLoader worker" in text:  # it sends its whole traceback; the last line is what happened
        text = text.splitlines()[-1].removeprefix(f"{type(error).__name__}: ")
    return " ".join(text.split()) or type(error).__name__


def printable(text: object, longest: int = LONGEST) -> str:
    """`text` on one line, without characters that steer a terminal, and not endless."""
    words = str(text)
    shown = "".join(letter if letter.isprintable() else "?" for letter in words[:longest])
    return shown + ("..." if len(words) > longest else "")


def quote(names: Sequence[str]) -> str:
    """The first few of `names`, for a message."""
    return ", ".join(map(printable, names[:QUOTED])) + (", ..." if len(names) > QUOTED else "")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the CPU, the GPU or a library."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)


@contextmanager
def _remembered_interrupt() -> Iterator[list[int]]:
    """Holds the signal after Ctrl-C: inside torch's C code that can surface as any other error."""
    received: list[int] = []

    def receive(number: int, frame: object) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    ours = before == signal.default_int_handler  # else somebody else, such as nohup, has decided about it
    if ours:
        signal.signal(signal.SIGINT, receive)
    try:
        yield received
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
