"""A model's weights as a quantized file, with a table of what it saves and what it costs.

    python -m quantize models/tiny.yaml --scheme int8_static --calibrate test_imgs --out tiny-int8.safetensors
    python generate.py --quantized tiny-int8.safetensors --image test_imgs/circle.png --prompt "cyan circle"
    python -m quantize models/tiny.yaml --scheme int4_group --calibrate test_imgs --sensitivity noise.json \\
        --budget-mib 12 --plan-out plan.json
    python -m quantize models/tiny.yaml --plan plan.json --out tiny-int4.safetensors

A picture's prompt for calibration is in the text file of its name, is one of those that the yaml lists under
`calibration:`, or is the picture's name. Exit codes: 0; 2 with one sentence about what is wrong; 130 after
Ctrl-C: nothing is written then, but --sensitivity keeps what was measured.
"""

from __future__ import annotations

from common.flags import add_flags, read_flags
from common.shell import Parser, run_command
from tools.compress.settings import Budget, Calibration, Files, QuantizeJob, Schemes

GROUPS = {
    "files": (Files, ""),
    "which layers become what": (Schemes, ""),
    "calibration": (Calibration, "runs of the float model on pictures, which measure ranges and errors"),
    "sensitivity": (Budget, "measure each layer by itself and plan by it; --out is not needed"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser("python -m quantize", __doc__)
    for title, (settings, about) in GROUPS.items():
        add_flags(parser, settings, title, about)
    args = parser.parse_args(argv)
    stopped = "stopped; nothing was written"
    if args.sensitivity:
        stopped = f"stopped; what was measured is in {args.sensitivity}: the same command goes on"

    def act() -> str:
        job = QuantizeJob(*(read_flags(settings, args) for settings, _ in GROUPS.values()))
        from tools.compress import quantizing  # torch and the models, which --help does without

        return quantizing.plan(job) if job.budget.sensitivity else quantizing.quantize(job)

    return run_command(act, stopped=stopped)


if __name__ == "__main__":
    raise SystemExit(main())
