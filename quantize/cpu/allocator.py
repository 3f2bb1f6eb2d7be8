"""The C library's memory: large activations are asked for anew at every layer, and should not be mapped anew.

By default glibc maps each large block from the system and gives it back when it is freed, so that every page
of every activation is cleared and faulted in again: on the machine this was measured on that took a fifth of
a float32 denoising step.
"""

from __future__ import annotations

import ctypes
import functools
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
KEPT_BYTES = 2**31 - 1  # freed memory that stays with the process: as much as the setting can say


@functools.cache
def keep_freed_memory() -> bool:
    """Let freed memory stay with the process for what comes next; whether the C library could be told so.

    It is a setting of the whole process, made once. The most memory that is held at a time stays the same.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
