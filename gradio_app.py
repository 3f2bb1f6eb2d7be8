"""The demo in a browser: draw or upload, say what it shall be, see it become a picture.

    python gradio_app.py
    python gradio_app.py --config models/control_v11p_sd15_canny.yaml --weights base.safetensors control.pth
    python gradio_app.py --listen --auth me:secret --model small=models/tiny.yaml,small.safetensors

Serves http://127.0.0.1:7860, on the tiny model that ships unless another is named. Exit codes: 2 with one
sentence about what is wrong; 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

# Flags are read before anything heavy is imported, so that --help answers at once.
from app.serve_flags import ServeFlags, parse_flags
from common.shell import run_command

MEMORY = "start with --save-memory, and --dtype fp16 or bf16 on a GPU"


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    flags = parse_flags(argv, __doc__)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a server's usual end
    return run_command(lambda: _serve(flags), stopped="stopped", out_of_memory=MEMORY)


def _serve(flags: ServeFlags) -> None:
    from app.server import running

    with running(flags) as server:
        sys.stdout.write(f"{server.url} answers; Ctrl-C stops it\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Open connections and a step of a large model are not waited for: Ctrl-C ends within two seconds.
    os._exit(code)
