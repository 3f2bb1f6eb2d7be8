"""Ctrl-C and SIGTERM as a wish: the run ends after the step it is in, and saves first."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Listens while it is entered; `asked` is the signal that came, 0 for none. A second one ends at once."""

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = number
        sys.stderr.write("\nstopping after this step, the state is saved first; once more to stop at once\n")
