"""The C++ kernels of this folder: built on this machine at first use, kept, and called through ctypes.

Sources are plain C++ with OpenMP and AVX-512 intrinsics, without torch's headers, so that all of them compile
in seconds. torch.utils.cpp_extension builds them into its extension folder; the name carries a hash of
sources, flags and CPU, so that whatever changes is built anew. They are linked to the OpenMP that torch has
loaded: with a second one, each would keep its own pool of threads spinning on the same cores.

What is missing (compiler, ninja, instructions) is logged once, and callers compute in plain torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import re
import shlex
import shutil
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
# No -ffast-math: the results are those of plain torch, NaN included.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-std=c++17")
NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")  # as Linux spells them
C_TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "f": ctypes.c_float}
CPUINFO = Path("/proc/cpuinfo")
FINISHED = "finished"  # an empty file; a build that broke off has none
_building = threading.Lock()


class Missing(Exception):
    """What this machine lacks for the kernels, in words."""


def function(name: str, signature: str) -> Callable[..., None] | None:
    """The kernel called `name`, or None where there is no library.

    signature: a letter for each argument: p pointer, l int64, f float32. Checking them is the caller's part.
    """
    made = library()
    return None if made is None else _declared(made, name, signature)


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
    folder = _extensions_folder() / name
    made, finished = folder / f"{name}.so", folder / FINISHED
    if not (made.exists() and finished.exists()):
        with _alone_in(folder):
            if not (made.exists() and finished.exists()):  # another process may have built it meanwhile
                _compile(name, sources, folder, openmp)
                finished.touch()
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
    own = str(Path(torch.__file__).parent)
    return Path(min(paths, key=lambda path: (not path.startswith(own), path)))


def _fingerprint(sources: list[Path], cpu: str, openmp: Path) -> str:
    parts = [path.read_bytes() for path in sorted([*sources, *SOURCES.glob("*.h")])]
    parts += [line.encode() for line in (*FLAGS, str(openmp), cpu)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _extensions_folder() -> Path:
    """Where torch keeps what it built; asking it would import its builder, which is slow and loud."""
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(cache) / "torch_extensions"


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process at a time; the lock ends with its process, as that of torch's builder does not."""
    import fcntl  # Linux has it, not every system that imports this file

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "alone").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (folder / "lock").unlink(
            missing_ok=True
        )  # left by a build that was killed: torch would wait for ever
        yield


def _compile(name: str, sources: list[Path], folder: Path, openmp: Path) -> None:
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise Missing(f"there is no C++ compiler {compiler!r}: install g++, or name another by CXX")
    log.info("building the native kernels into %s: some seconds, only this once", folder)
    with _quiet_builder(), _path_to_ninja():
        from torch.utils.cpp_extension import load

        try:
            load(
                name,
                [str(path) for path in sources],
                extra_cflags=list(FLAGS),
                extra_ldflags=["-Wl,--as-needed", shlex.quote(str(openmp))],
                build_directory=str(folder),
                is_python_module=False,
            )
        except (RuntimeError, OSError) as error:
            raise Missing(_first_complaint(str(error))) from error


def _first_complaint(said: str) -> str:
    """The compiler's first error in what the builder said, else the first line of it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no reason was given"]
    return next((line for line in lines if " error: " in line), lines[0])


@contextlib.contextmanager
def _quiet_builder() -> Iterator[None]:
    """Its import warns where no CUDA is found, which no kernel here asks for."""
    builder = logging.getLogger("torch.utils.cpp_extension")
    before = builder.level
    builder.setLevel(logging.ERROR)
    try:
        yield
    finally:
        builder.setLevel(before)


@contextlib.contextmanager
def _path_to_ninja() -> Iterator[None]:
    """pip puts ninja beside python, which need not be on the PATH when python is called by its full name."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([before, sysconfig.get_path("scripts")])
    try:
        yield
    finally:
        os.environ["PATH"] = before
