"""What the commands that write weights share: a progress bar, Ctrl-C that counts, one sentence for a mistake.

Nothing heavy is imported here, so that their --help answers at once.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from cldm.convert_target import Target

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def answer(act: Callable[[], object], user_error: int, stopped: str = "stopped; nothing was written") -> int:
    """Print what `act` has to say and return the exit code: 0, `user_error` or 130 after one sentence.

    stopped: that sentence after Ctrl-C.
    """
    with _remembered_interrupt() as interrupted:
        try:
            sys.stdout.write(f"{act()}\n")
        except KeyboardInterrupt:
            return _say(stopped, INTERRUPTED)
        except (ValueError, OSError) as error:
            if interrupted:
                return _say(stopped, INTERRUPTED)
            return _say(_sentence(error), user_error)
    return 0


@contextmanager
def open_target(path: Path, *, force: bool, dtype: str | None = None) -> Iterator[Target]:
    """Where the result goes, with a progress bar on a terminal. dtype: a name such as fp16, None as it is."""
    from tqdm import tqdm

    from cldm.convert_target import Target
    from ldm.util import DTYPES

    bar = tqdm(unit="B", unit_scale=True, disable=None, leave=False, delay=1)

    def start(total: int) -> Callable[[int], object]:
        bar.reset(total)
        return bar.update

    with bar:
        yield Target(path, force=force, dtype=DTYPES.get(dtype or ""), bar=start)


@contextmanager
def _remembered_interrupt() -> Iterator[list[int]]:
    """Holds the signal after Ctrl-C: inside torch's C code that can surface as any other error."""
    received: list[int] = []

    def receive(number: int, frame: object) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before == signal.default_int_handler:  # else somebody else, such as nohup, has decided about it
        signal.signal(signal.SIGINT, receive)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def _sentence(error: Exception) -> str:
    """One line, whatever raised it; the system's own errors lose their number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _say(sentence: str, code: int) -> int:
    sys.stderr.write(sentence + "\n")
    return code
