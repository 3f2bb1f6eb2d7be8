"""Memory of this process: the most it has held, how to say it, and whether freed memory stays with it."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from collections.abc import Mapping

KILOBYTE = 1024
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
KEPT_BYTES = 2**31 - 1  # freed memory that stays with the process: as much as the setting can say


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


@functools.cache
def keep_freed_memory() -> bool:
    """Let freed memory stay with the process for what comes next; whether the C library could be told so.

    By default glibc maps each large block anew, so that every page of every activation is cleared and faulted
    in again: a fifth of a float32 denoising step where this was measured. It is a setting of the whole
    process, made once. The most memory that is held at a time stays the same.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
