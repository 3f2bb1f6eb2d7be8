"""The loader of native kernels: what it builds, what it keeps, and what it says where it cannot."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quantize import native
from quantize.cpu import activations as kernels

ROOT = Path(__file__).parents[2]
needs_library = pytest.mark.skipif(native.library() is None, reason="no compiler, or a CPU without VNNI")
SMALL = 'extern "C" void fw_answer(float* out) { *out = 42; }\n'
LARGE = 1 << 20  # values: enough for several threads


@pytest.fixture(autouse=True)
def _ask_again():
    """Each test asks anew, and leaves what the next one asks anew."""
    native._library.cache_clear()
    yield
    native._library.cache_clear()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty extension folder, and one source file of our own."""
    sources = tmp_path / "sources"
    sources.mkdir()
    # Of its own for each test: a process opens a library of one name once.
    (sources / "small.cpp").write_text(f"// {tmp_path}\n{SMALL}")
    monkeypatch.setattr(native, "SOURCES", sources)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    return sources


def warnings_of(caplog):
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


@needs_library
def test_a_source_is_built_once_and_found_again(elsewhere, monkeypatch):
    out = torch.zeros(1)
    native.function("fw_answer", "p")(out.data_ptr())
    assert out.item() == 42
    monkeypatch.setattr(native, "_compile", lambda *args: pytest.fail("built again"))
    native._library.cache_clear()
    assert native.library() is not None


@needs_library
def test_a_changed_source_or_header_is_another_library(elsewhere):
    first = native.library()._name
    (elsewhere / "small.cpp").write_text(SMALL.replace("42", "43"))
    native._library.cache_clear()
    second = native.library()._name
    (elsewhere / "small.h").write_text("// new\n")
    native._library.cache_clear()
    assert len({first, second, native.library()._name}) == 3


def falls_back_once(caplog, reason):
    x = torch.linspace(-1, 2, 100)
    for _ in range(3):
        assert native.function("fw_bytes", "plfllpp") is None
        values, qparams = kernels.quantize(x, None)
        assert ((values.float() - qparams.zero) * qparams.scale - x).abs().max() <= qparams.scale / 2 * 1.001
    (said,) = warnings_of(caplog)
    assert reason in said
    assert "\n" not in said


def test_no_compiler_is_said_once_and_torch_computes(elsewhere, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    falls_back_once(caplog, "no C++ compiler 'no-such-compiler'" if native.CPUINFO.exists() else "Linux")


@needs_library
def test_a_compiler_that_fails_is_quoted_in_a_line(elsewhere, caplog):
    (elsewhere / "small.cpp").write_text("int broken( { return 1; }\n")
    falls_back_once(caplog, "small.cpp:1:")


@pytest.mark.parametrize(
    ("cpu", "reason"),
    [
        ("model name\t: Old\nflags\t\t: fpu avx2 fma\n", "avx512_vnni"),
        ("model name\t: Older\nflags\t\t: fpu\nflags\t\t: avx512_vnni\n", "avx512f"),
        (None, "Linux"),
    ],
)
def test_a_cpu_without_the_instructions_is_said_once(cpu, reason, tmp_path, monkeypatch, caplog):
    if cpu is not None:
        (tmp_path / "cpuinfo").write_text(cpu)
    monkeypatch.setattr(native, "CPUINFO", tmp_path / "cpuinfo")
    falls_back_once(caplog, reason)


@needs_library
def test_a_folder_that_cannot_be_written_is_said_once(elsewhere, monkeypatch, caplog, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    falls_back_once(caplog, "file")


def threads_of_this_process():
    return len(os.listdir("/proc/self/task"))


@needs_library
def test_kernels_run_on_the_threads_of_torch():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        x = torch.randn(LARGE)
        x.exp().sum()  # torch has all of its threads now
        threads = threads_of_this_process()
        for _ in range(3):
            kernels.quantize(x, None)
        assert threads_of_this_process() == threads
    finally:
        torch.set_num_threads(before)
    libraries = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert len([path for path in libraries if "libgomp" in path]) <= 1


@needs_library
def test_a_finished_library_loads_without_the_builder():
    code = "import sys; from quantize import native; native.library(); print('setuptools' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
