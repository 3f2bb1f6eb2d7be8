"""The C++ kernels of this folder: built on this machine at first use, kept, and called through ctypes.

Sources are plain C++ with OpenMP and AVX-512 intrinsics, without torch's headers, so that all of them compile
in seconds. The library lies where torch keeps its extensions; its name carries a hash of sources, flags and
CPU, so that whatever changes is built anew. It is linked to the OpenMP that torch has loaded: with a second
one, each would keep its own pool of threads spinning on the same cores.

What is missing (compiler, instructions) is logged once, and callers compute in plain torch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.atomic import atomic_write

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
# No -ffast-math: the results are those of plain torch, NaN included.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-std=c++17")
NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")  # as Linux spells them
CPUINFO = Path("/proc/cpuinfo")
_building = threading.Lock()  # two threads would compile at once


class Missing(Exception):
    """What this machine lacks for the kernels, in words."""


class _Pointer(ctypes.c_void_p):
    @classmethod
    def from_param(cls, given: Any) -> Any:
        return super().from_param(given.data_ptr() if isinstance(given, Tensor) else given)


C_TYPES = {"p": _Pointer, "l": ctypes.c_int64, "f": ctypes.c_float}


def function(name: str, signature: str) -> Callable[..., None] | None:
    """The kernel called `name`, or None where there is no library.

    signature: a letter for each argument: p pointer, for which tensors may be given, l int64, f float32.
    Checking them is the caller's part.
    """
    made = library()
    return None if made is None else _declared(made, name, signature)


def structure(pointers: str, numbers: str, **others: type) -> type[ctypes.Structure]:
    """The C struct of so many pointers, then int64s, then `others`, that a kernel of many arguments takes."""
    fields = [(name, ctypes.c_void_p) for name in pointers.split()]
    fields += [(name, ctypes.c_int64) for name in numbers.split()]
    return type("Arguments", (ctypes.Structure,), {"_fields_": [*fields, *others.items()]})


def run(name: str, layout: type[ctypes.Structure], **arguments: Any) -> None:
    """Call the kernel `name`, which takes a `layout`; its pointers may be given as tensors."""
    given = {field: one.data_ptr() if isinstance(one, Tensor) else one for field, one in arguments.items()}
    function(name, "p")(ctypes.byref(layout(**given)))


def library() -> ctypes.CDLL | None:
    """All kernels, built if need be; None where this machine cannot, which is logged when first asked."""
    with _building:
        return _library()


@functools.cache
def _declared(made: ctypes.CDLL, name: str, signature: str) -> Callable[..., None]:
    found = getattr(made, name)
    found.argtypes, found.restype = [C_TYPES[letter] for letter in signature], None
    return found


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(_built()))
    except (Missing, OSError) as error:
        log.warning("native kernels are left out, plain torch computes instead: %s", error)
        return None


def _built() -> Path:
    cpu, openmp = _cpu(), _openmp_of_torch()
    sources = sorted(SOURCES.glob("*.cpp"))
    name = f"featherweight_{_fingerprint(sources, cpu, openmp)}"
    made = _extensions_folder() / name / f"{name}.so"
    if not made.exists():
        with atomic_write(made) as partial:  # another process may build it too: the last one stays
            _compile(sources, partial, openmp)
    return made


def _cpu() -> str:
    """Name and instructions of this machine's CPU; raises Missing where it has not those that are needed."""
    if not CPUINFO.exists():
        raise Missing("they are built on Linux only")
    cpu = re.findall(r"^(?:model name|flags)\s*:.*$", CPUINFO.read_text(), re.MULTILINE)[:2]
    lacking = sorted(set(NEEDED) - set(" ".join(cpu).split()))
    if lacking:
        raise Missing(f"this CPU lacks {', '.join(lacking)}")
    return "\n".join(cpu)


def _openmp_of_torch() -> Path:
    """The OpenMP library that this process has loaded; torch's own where there are two."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[-1] for line in lines if re.search(r"/lib(gomp|iomp5|omp)\b[^/]*$", line)}
    if not paths:
        raise Missing("the OpenMP library of torch is not to be found")
    own = str(Path(torch.__file__).parent)  # wheels of torch bring their own
    return Path(min(paths, key=lambda path: (not path.startswith(own), path)))


def _fingerprint(sources: list[Path], cpu: str, openmp: Path) -> str:
    parts = [path.read_bytes() for path in sorted([*sources, *SOURCES.glob("*.h")])]
    parts += [line.encode() for line in (*FLAGS, str(openmp), cpu)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _extensions_folder() -> Path:
    """Where torch keeps extensions; asking it would import its builder, which is slow and loud."""
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(cache) / "torch_extensions"


def _compile(sources: list[Path], out: Path, openmp: Path) -> None:
    compiler = os.environ.get("CXX", "c++")
    log.info("building the native kernels into %s: some seconds, only this once", out.parent)
    command = [compiler, *FLAGS, "-shared", "-fPIC", *map(str, sources), "-Wl,--as-needed", str(openmp)]
    try:
        done = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True)
    except FileNotFoundError:
        raise Missing(f"there is no C++ compiler {compiler!r}: install g++, or name another by CXX") from None
    if done.returncode:
        raise Missing(_first_complaint(done.stderr))


def _first_complaint(said: str) -> str:
    """The compiler's first error in what it said, else the first line of it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no reason was given"]
    return next((line for line in lines if " error: " in line), lines[0])
