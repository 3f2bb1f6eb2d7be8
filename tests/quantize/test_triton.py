"""The kernels for GPUs: their results on Triton's interpreter, and that compilers for GPUs take them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
SECONDS = 600  # some 20 on a machine with nothing else to do


def run(*command, interpret="0"):
    """Python with a command, from the root; whether Triton interprets is settled before it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=SECONDS, cwd=ROOT
    )


def test_kernels_give_the_references_results_on_the_interpreter():
    cases = "tests/quantize/triton_cases.py"
    done = run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", cases, interpret="1")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_package_does_without_triton_until_a_gpu_asks():
    code = "import sys, quantize.backends, quantize.model; assert 'triton' not in sys.modules"
    assert run("-c", code).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "products"), [(89, "mma.sync.aligned.m16n8"), (90, "wgmma.mma_async.sync.aligned.m64")]
)
def test_compilers_for_gpus_take_the_kernels_and_use_tensor_cores(capability, products):
    done = run("-m", "tests.quantize.triton_compile", str(capability))
    assert done.returncode == 0, done.stderr[-4000:]
    made = {
        name: (words, asynchronous) for name, words, asynchronous in map(json.loads, done.stdout.splitlines())
    }
    types = {
        "int8 conv": "s32.s8.s8", "int8 linear": "s32.s8.s8", "int8 weights": "f32.f16.f16",
        "int4 weights": "f32.bf16.bf16", "fp8 conv": "f32.e4m3.e4m3",
    }  # fmt: skip
    for name, kinds in types.items():
        words, asynchronous = made[name]
        assert words
        assert all(word.startswith(products) and kinds in word for word in words)
        assert asynchronous, f"{name}: tiles are not fetched while others are multiplied"
    assert len(made) > len(types)
