"""The package works on any `nn.Module`: it needs torch, safetensors, numpy and tqdm, of ours only common.

Triton is for GPUs alone: only the package of their kernels imports it, and only a GPU asks for that.
"""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "quantize"
ALLOWED = {"quantize", "common", "torch", "safetensors", "numpy", "tqdm"}
LIBRARY = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__main__.py"]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_library_imports_few_packages(path):
    allowed = ALLOWED | {"triton"} if path.parent.name == "triton" else ALLOWED
    assert set(imported(path)) - sys.stdlib_module_names <= allowed
