"""What each scheme costs in accuracy at the architecture of Stable Diffusion 1.5, with random weights.

    python -m bench.quality.quantized_error
    python -m bench.quality.quantized_error --schemes int8_dynamic int8_static --size 256
    python -m bench.quality.quantized_error --schemes int8_dynamic --rule "*.skip_connection=int8_weight"

Random weights say nothing of pictures: they are a hard case for the arithmetic, since no part of the network
has learned to put up with noise. Of their two kinds (`bench.random_weights`) Gaussian ones, whose activations
keep their size and which need wider steps, are the harder. Errors are relative to the float model,
|a - b| / |b|: of one step, the median over four timesteps, and of the latents after DDIM steps without
guidance from the same noise. Small pictures make it affordable: channels and layers are those of the full
size. fp8 is computed by the reference, everything else as `load_quantized_model` has it. Each scheme has a
process of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from bench.files import Files
from bench.harness import FOLDER, MIB, PERCENT, SD15, Bench, BenchFlags, Column, chosen, table_of
from bench.inputs import Inputs, relative_error
from bench.processes import apart
from bench.random_weights import WEIGHTS
from bench.results import Measurement
from common.flags import flag
from quantize.selection import parse_rules

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM

TIMESTEPS = (100, 350, 600, 850)  # one in each of four groups of ranges
FLOAT = "float32"  # what errors are relative to
SCHEMES = ("int8_weight", "int8_dynamic", "int8_static", "int4_group", "fp8_weight", "fp8_dynamic")
COLUMNS = (
    Column("file, MiB", "file", "{:.1f}", MIB),
    Column("error of a step, %", "a step", unit=PERCENT),
    Column("after DDIM, %", "sampling", unit=PERCENT),
)


@dataclass(frozen=True)
class ErrorFlags(BenchFlags):
    """The command line."""

    SHARED: ClassVar[Sequence[str]] = ("config", "size", "steps", "weights")

    only: tuple[str, ...] = flag((), f"of {', '.join(SCHEMES)}", "--only", "--schemes", metavar="SCHEME")
    config: Path = flag(SD15, "yaml of the model")
    folder: Path = flag(FOLDER, "of the files")
    weights: str = flag("gaussian", "how they are drawn", choices=tuple(WEIGHTS))
    rule: tuple[str, ...] = flag((), "before those of the schemes", action="append", metavar="PATTERN=SCHEME")
    size: int = flag(128, "side of the picture, pixels")  # all layers, few positions
    steps: int = flag(20, "of DDIM")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_rules(self.rule)

    @property
    def files(self) -> Files:
        """The weights, whole and quantized."""
        return Files(self.config, self.folder, self.weights, self.rule)

    def label(self, scheme: str) -> str:
        """The name of a row."""
        return ", ".join([scheme, *self.rule])


def load(files: Files, scheme: str, size: int) -> ControlLDM:
    """The model of a scheme's file, made if it is not there."""
    from cldm.compressed.quantized import load_quantized_model
    from cldm.model import load_model
    from ldm.config import create_meta_model
    from quantize.files.read import load_quantized

    if scheme == FLOAT:
        return load_model(files.config, files.make_weights())
    path = files.make_quantized(scheme, size)
    if not scheme.startswith("fp8"):
        return load_quantized_model(files.config, path)
    model = create_meta_model(files.config)
    load_quantized(model, path, backend="reference")  # a CPU has no arithmetic for fp8
    return model.eval()


@torch.inference_mode()
def outputs(model: ControlLDM, size: int, steps: int) -> dict[str, list[Tensor]]:
    """Predictions of single steps [1, 4, h, w], and the latents after DDIM's `steps`."""
    from ldm.models.diffusion.samplers import sample

    inputs = Inputs.random(model, size, 1)
    features = model.control_model.encode_hint(inputs.hint)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        control = model.control_model(x, features, t, inputs.text, encoded=True)
        cond = {"c_crossattn": [inputs.text], "c_concat": None, "control": control}
        return model.predict_eps(x, t, cond)

    single = [predict(inputs.x, torch.tensor([t])) for t in TIMESTEPS]
    return {"a step": single, "sampling": [sample("ddim", predict, inputs.x, steps, model.alphas_cumprod)]}


def save_outputs(flags: ErrorFlags, scheme: str, path: Path) -> None:
    """What a scheme computes, as `path`; for a process of its own."""
    torch.save(outputs(load(flags.files, scheme, flags.size), flags.size, flags.steps), path)


def measure(flags: ErrorFlags) -> Iterator[Measurement]:
    """Bytes and errors of each scheme."""
    schemes = chosen(flags.only, SCHEMES, "scheme")
    with tempfile.TemporaryDirectory() as folder:
        base, path = Path(folder, "base.pt"), Path(folder, "scheme.pt")
        apart(save_outputs, flags, FLOAT, base)  # gigabytes that the next one needs
        for scheme in schemes:
            apart(save_outputs, flags, scheme, path)
            label, size = flags.label(scheme), flags.files.quantized(scheme, flags.size).stat().st_size
            yield Measurement(label, "file", size, "B")
            for what, found in errors(base, path).items():
                yield Measurement.of(label, what, "of its size", found)


def errors(expected: Path, found: Path) -> Mapping[str, list[float]]:
    """Of single steps and of sampling."""
    base, other = torch.load(expected), torch.load(found)
    return {what: list(map(relative_error, other[what], base[what])) for what in base}


table = table_of(COLUMNS, "scheme")
main = Bench("bench.quality.quantized_error", __doc__, ErrorFlags, measure, table).run

if __name__ == "__main__":
    raise SystemExit(main())
