"""Bytes of quantized files at the exact shapes of a model: shapes and plan say them before there is a weight.

    python -m bench.memory.quantized_sizes
    python -m bench.memory.quantized_sizes --config models/tiny.yaml --schemes int8_dynamic fp8_weight

Static layers have a range over all timesteps and one for each of four groups, as `python -m quantize` makes
them. "Branch" is the control branch alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bench.harness import MB, MIB, SD15, Bench, BenchFlags, markdown
from bench.memory.quantized_load import CONTROL
from bench.results import Measurement, Rows
from common.flags import flag

if TYPE_CHECKING:
    from torch import nn

RANGES = ((0.0, 1.0),) * 5  # their number counts
SWITCHES = ((), ("decoder",), ("compact",), ("compact", "decoder"))


@dataclass(frozen=True)
class SizeFlags(BenchFlags):
    """The command line."""

    SHARED: ClassVar[Sequence[str]] = ("config",)

    config: Path = flag(SD15, "yaml of the model")
    schemes: tuple[str, ...] = flag(("int8_static", "int4_group"), "columns of the table", metavar="NAME")


def sizes(model: nn.Module, scheme: str, switches: tuple[str, ...]) -> tuple[int, int]:
    """Bytes of the whole file, and of the tensors of the control branch in it."""
    from common.safetensors_header import nbytes
    from quantize.calibration.ranges import static_layers
    from quantize.files.layout import layout_of, specs_of
    from quantize.files.write import Content, file_size
    from quantize.selection import default_selection, make_plan

    plan = make_plan(model, default_selection(scheme, **dict.fromkeys(switches, True)))
    ranges = dict.fromkeys(static_layers(plan), RANGES)
    layout = layout_of(model, specs_of(model, plan, ranges), narrow=plan.narrow)
    branch = sum(nbytes(*entry) for name, entry in layout.items() if name.startswith(CONTROL))
    return file_size(model, Content(plan), ranges), branch


def measure(flags: SizeFlags) -> Iterator[Measurement]:
    """Both sizes for each set of switches and scheme."""
    from ldm.config import create_meta_model

    model = create_meta_model(flags.config)
    for switches in SWITCHES:
        subject = " ".join(f"--{one}" for one in switches) or "default"
        for scheme in flags.schemes:
            whole, branch = sizes(model, scheme, switches)
            yield Measurement(subject, f"{scheme} file", whole, "B")
            yield Measurement(subject, f"{scheme} branch", branch, "B")


def table(rows: Rows, flags: SizeFlags) -> str:
    """A row for each set of switches."""
    head = ["plan", *(cell for scheme in flags.schemes for cell in (f"{scheme}, MiB", "branch, MB"))]
    cells = [[name] for name in rows]
    for line, row in zip(cells, rows.values(), strict=True):
        for scheme in flags.schemes:
            whole, branch = (row[f"{scheme} {what}"].value for what in ("file", "branch"))
            line += [f"{whole / MIB:.1f}", f"{branch / MB:.1f}"]
    return markdown(head, cells)


main = Bench("bench.memory.quantized_sizes", __doc__, SizeFlags, measure, table).run

if __name__ == "__main__":
    raise SystemExit(main())
