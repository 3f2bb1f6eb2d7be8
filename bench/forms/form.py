"""What a model is called on a command line that compares several: NAME=MODEL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.harness import TINY

if TYPE_CHECKING:
    from cldm.pipeline import Pipeline

USAGE = "NAME=YAML, NAME=YAML:WEIGHTS[:WEIGHTS] or NAME=QUANTIZED, such as full=models/tiny.yaml"
SPECIAL = set('/\\:"*?<>| ')  # a name is that of a folder too


@dataclass(frozen=True)
class Form:
    """A model: yaml, and weights (those of the yaml for none) or a quantized file."""

    name: str
    config: Path
    weights: tuple[Path, ...] = ()
    quantized: Path | None = None

    @property
    def files(self) -> list[Path]:
        """What it loads, yaml aside."""
        from ldm.config import read_config

        own = [self.config.parent / name for name in read_config(self.config).get("weights", [])]
        return [self.quantized] if self.quantized else list(self.weights or own)

    def open(self, device: str = "auto") -> Pipeline:
        """Load it."""
        from cldm.pipeline import Pipeline

        return Pipeline.from_files(self.config, *self.weights, device=device, quantized=self.quantized)


def parse_form(text: str) -> Form:
    """What `text` names; ValueError or FileNotFoundError in one sentence for anything else."""
    name, equals, model = text.partition("=")
    if not (name and equals and model):
        raise ValueError(f"{text!r} names no model: write {USAGE}")
    if SPECIAL & set(name) or name.startswith("."):
        raise ValueError(f"{name!r} cannot be the name of a folder: use letters, digits, - and _")
    yaml = next((part for part in model.split(":") if part.endswith((".yaml", ".yml"))), None)
    config = Path(yaml) if yaml else TINY
    paths = [Path(part) for part in model.split(":") if part and part != yaml]
    for path in [config, *paths]:
        if not path.exists():
            raise FileNotFoundError(f"{name}: no file {path}")
    if not yaml and not (len(paths) == 1 and is_quantized(paths[0])):
        raise ValueError(f"{text!r} names no yaml: write {USAGE}")
    if quantized := [path for path in paths if is_quantized(path)]:
        if len(paths) > 1:
            raise ValueError(f"{name}: {quantized[0]} is quantized and holds all weights: name no other")
        return Form(name, config, quantized=quantized[0])
    return Form(name, config, tuple(paths))


def parse_forms(texts: Sequence[str], at_least: int = 1) -> list[Form]:
    """All of them, under names that differ. Errors as `parse_form`."""
    forms = [parse_form(text) for text in texts]
    if len(forms) < at_least:
        raise ValueError(f"{len(forms)} models: name {at_least} or more, each as {USAGE}")
    names = [form.name for form in forms]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two models are called {twice}: give each its own name")
    return forms


def is_quantized(path: Path) -> bool:
    """Whether a file is one of `python -m quantize`."""
    from quantize.files.read import read_content

    try:
        read_content(path)
    except (ValueError, OSError):
        return False
    return True
