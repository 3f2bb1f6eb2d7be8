"""Compile the kernels for GPUs that need not be there, and print what multiplies in each: one line a kernel.

`test_triton.py` runs this file: Triton must not be interpreting.
"""

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quantize.triton import multiply, norms, quantize_input

ALIGNED = [["tt.divisibility", 16]]
THREADS = 32
INDICES = "i32"
WALK = {
    "TAPS_X": 3, "TAPS": 9, "STRIDE_Y": 1, "STRIDE_X": 1, "PAD_Y": 1, "PAD_X": 1, "DILATE_Y": 1,
    "DILATE_X": 1, "height": INDICES, "width": INDICES, "out_height": INDICES, "out_width": INDICES,
    "rows": INDICES, "columns": INDICES, "inside": INDICES, "x_step": INDICES, "out_step": INDICES,
    "ROWS": 128, "COLUMNS": 64, "DEPTH": 64, "out": "*fp16", "bias": "*fp16", "w_scale": "*fp32",
}  # fmt: skip
LINEAR = {
    "TAPS": 1,
    "TAPS_X": 1,
    "PAD_Y": 0,
    "PAD_X": 0,
    "height": 1,
    "width": 1,
    "out_height": 1,
    "out_width": 1,
}
BYTES = {"x": "*i8", "weight": "*i8", "x_scale": "*fp32", "x_zero": "*i32", "w_sums": "*i32"}
ALONE = {"x_scale": None, "x_zero": None, "w_sums": None}
AFFINE = {
    "values": "*i8", "scale_out": "*fp32", "zero_out": "*i32", "parts": "*fp32", "programs": INDICES,
    "in_scale": None, "in_zero": None, "at": None, "PARTS": 512,
}  # fmt: skip
GROUPS = {"WIDTH": 16, "GROUP": 10, "channels": INDICES, "added": "*fp16"}
ROWS = {"weight": "*fp16", "bias": "*fp16", "eps": "fp32", "DEPTH": 320, "WIDTH": 512}
KERNELS = {
    "int8 conv": (multiply.multiply, WALK | BYTES),
    "int8 linear": (multiply.multiply, WALK | BYTES | LINEAR),
    "int8 weights": (multiply.multiply, WALK | ALONE | {"x": "*fp16", "weight": "*i8"}),
    "int4 weights": (
        multiply.multiply_int4,
        WALK
        | {"x": "*bf16", "weight": "*u8", "w_scale": "*bf16", "scales": INDICES, "half": INDICES}
        | {"SHARING": 64},
    ),
    "fp8 conv": (
        multiply.multiply,
        WALK | ALONE | {"x": "*fp8e4nv", "weight": "*fp8e4nv", "x_scale": "*fp32"},
    ),
    "rescale": (multiply.rescale, WALK | BYTES | {"sums": "*i32", "ROWS": 16, "COLUMNS": 256}),
    "extremes": (
        quantize_input.find_extremes,
        {"x": "*fp16", "parts": "*fp32", "total": INDICES, "BLOCK": 2048},
    ),
    "bytes": (
        quantize_input.write_bytes,
        AFFINE
        | dict.fromkeys(("total", "channels", "image"), INDICES)
        | {"x": "*fp16", "gain": "*fp32", "shift": "*fp32", "SILU": True, "BLOCK": 2048},
    ),
    "fp8 codes": (
        quantize_input.write_fp8,
        AFFINE | {"x": "*fp16", "values": "*fp8e4nv", "total": INDICES, "BLOCK": 2048},
    ),
    "look at groups": (
        norms.look_at_groups,
        GROUPS
        | {"x": "*fp16", "stats": "*fp32", "low_out": "*fp32", "high_out": "*fp32", "pixels": INDICES}
        | {"span": INDICES, "PIXELS": 256},
    ),
    "finish groups": (
        norms.finish_groups,
        GROUPS
        | dict.fromkeys(("stats", "lows", "highs", "weight", "bias", "gain", "shift", "ends"), "*fp32")
        | {"parts": INDICES, "eps": "fp32", "PARTS": 4},
    ),
    "look at rows": (norms.look_at_rows, ROWS | {"x": "*fp16", "parts": "*fp32", "rows": INDICES}),
    "rows": (norms.write_rows, AFFINE | ROWS | {"x": "*fp16"}),
}  # fmt: skip


def compiled(name, capability):
    """The assembly of a kernel for GPUs of a capability such as 80."""
    kernel, given = KERNELS[name]
    types = {one: given[one] for one in kernel.arg_names}
    fixed = {one: value for one, value in types.items() if not isinstance(value, str)}
    signature = {one: "constexpr" if one in fixed else value for one, value in types.items()}
    whole = {index for index, value in enumerate(signature.values()) if value[0] == "*" or value == INDICES}
    source = ASTSource(kernel, signature, fixed, {(index,): ALIGNED for index in whole})
    return triton.compile(source, target=GPUTarget("cuda", capability, THREADS)).asm["ptx"]


def main():
    for name in KERNELS:
        lines = compiled(name, int(sys.argv[1])).splitlines()
        asynchronous = sum("cp.async.c" in line for line in lines)
        products = sorted({word for line in lines for word in line.split() if "mma" in word and ".m" in word})
        sys.stdout.write(json.dumps([name, products, asynchronous]) + "\n")


if __name__ == "__main__":
    main()
