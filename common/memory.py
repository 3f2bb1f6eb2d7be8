"""The most memory this process has held, and how to say it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

KILOBYTE = 1024


def peak_memory() -> dict[str, int | None]:
    """Most memory held at once so far, in bytes: `ram` of this process, `gpu` None where none was used."""
    peak: dict[str, int | None] = {"ram": None, "gpu": None}
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        unit = 1 if sys.platform == "darwin" else KILOBYTE  # Linux counts kilobytes, macOS bytes
        peak["ram"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["gpu"] = torch.cuda.max_memory_allocated()
    return peak


def memory_sentence(peak: Mapping[str, int | None]) -> str:
    """Such as `peak memory 812 MiB RAM and 2301 MiB GPU`."""
    words = {"ram": "RAM", "gpu": "GPU"}
    parts = [f"{peak[name] / 2**20:.0f} MiB {word}" for name, word in words.items() if peak.get(name)]
    return f"peak memory {' and '.join(parts) or 'unknown'}"
