"""Which files a weights file passes on its way into a model: run in a tree of this project, prints JSON.

Traces `Pipeline.from_files` on the shipped tiny model. `handed`: files with a function that was given the
path of the weights, alone or in a list. `at_work`: files of which any function ran, but for those that only
read the yaml and build the empty model from it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

CONFIG, WEIGHTS = "models/tiny.yaml", "tiny.safetensors"
BUILDING = {"create_meta_model", "read_config", "<module>"}  # functions under which a network takes shape


class Trace:
    """A profile function that collects files of `root`."""

    def __init__(self, root: Path) -> None:
        self.root, self.building = f"{root}/", 0
        self.handed: set[str] = set()
        self.at_work: set[str] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """What sys.setprofile calls at each call and return."""
        code = frame.f_code
        file = code.co_filename.removeprefix(self.root)
        if event not in ("call", "return") or file.startswith(("/", ".", "<")):  # a library's
            return
        if code.co_name in BUILDING:
            self.building += 1 if event == "call" else -1
        elif event == "call" and not self.building:
            self.at_work.add(file)
            count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 0x04)  # with *args
            if any(_is_weights(frame.f_locals.get(name)) for name in code.co_varnames[:count]):
                self.handed.add(file)


def _is_weights(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_is_weights(one) for one in value)
    return isinstance(value, str | Path) and str(value).endswith(WEIGHTS)


def main() -> int:
    """Trace the tree in the current folder."""
    root = Path.cwd()
    sys.path.insert(0, str(root))
    from cldm.pipeline import Pipeline

    trace = Trace(root)
    sys.setprofile(trace)
    Pipeline.from_files(CONFIG, device="cpu")
    sys.setprofile(None)
    print(json.dumps({"handed": sorted(trace.handed), "at_work": sorted(trace.at_work)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
