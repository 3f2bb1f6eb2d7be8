"""The models of a server by name: each is loaded when it is first asked for, and kept.

Only the worker's thread calls `get`. The shipped tiny model is always there in three forms: with its full
branch, with its lite branch, and in int8, which is made at first use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.batch import TINY_CONFIG, load_pipeline
from app.provenance import Provenance
from checkpoints.lora.names import parse_lora
from checkpoints.names.recognize import file_stem
from cldm.request import DEFAULTS
from ldm.config import read_config

if TYPE_CHECKING:
    from cldm.pipeline import Pipeline

TINY, LITE, INT8 = "tiny", "tiny-lite", "tiny-int8"
LITE_CONFIG = TINY_CONFIG.with_name("tiny_lite.yaml")
INT8_SCHEME = "int8_dynamic"  # needs no pictures to be made
NAME = re.compile(r"[\w.-]{1,40}")


@dataclass
class LoadedModel:
    """A model that is ready. preview_seconds: what its last preview took; weight_bytes: in memory."""

    name: str
    pipeline: Pipeline
    provenance: Provenance
    preview_seconds: float = 0.0
    weight_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        # Now: quantized weights are packed at the first call, and are no tensors of the model any more.
        networks = [self.pipeline.model, *self.pipeline.branches.values()]
        tensors = [one for network in networks for one in (*network.parameters(), *network.buffers())]
        self.weight_bytes = sum({one.data_ptr(): one.nbytes for one in tensors}.values())

    @property
    def reads_korean(self) -> bool:
        """Whether prompts may be Korean."""
        return self.pipeline.defaults.get("vocabulary") is not None

    @property
    def file_bytes(self) -> int:
        """Of all files that it was loaded from."""
        files = map(Path, files_of(self.provenance))
        folders = (
            [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path] for path in files
        )
        return sum(path.stat().st_size for paths in folders for path in paths)


class Models:
    """All that a server can draw with. folder: where what is made on the way is kept."""

    def __init__(self, main: Provenance, others: Mapping[str, Provenance], folder: Path) -> None:
        how = {"device": main.device, "dtype": main.dtype, "save_memory": main.save_memory}
        tiny = Provenance(**how)
        lite = replace(tiny, config=LITE_CONFIG.as_posix())
        self._folder, self._loaded = folder, dict[str, LoadedModel]()
        self.first = name_of(main)
        shipped = {TINY: tiny, LITE: lite, INT8: tiny}
        self._known: dict[str, Provenance] = {**shipped, self.first: main, **others}

    @property
    def names(self) -> list[str]:
        """Of all models, the one that draws by default first."""
        return [self.first, *(name for name in self._known if name != self.first)]

    def check(self, name: str) -> str:
        """`name`, if there is such a model; ValueError lists the known ones."""
        if name not in self._known:
            raise ValueError(f"there is no model {name!r}; known are {', '.join(self.names)}")
        return name

    def get(self, name: str) -> LoadedModel:
        """The model called `name`, loaded. Errors as `load_pipeline`."""
        provenance = self._known[self.check(name)]
        if name not in self._loaded:
            if name == INT8 and not provenance.quantized:
                provenance = replace(provenance, quantized=self._make_int8(provenance).as_posix())
            self._loaded[name] = LoadedModel(name, load_pipeline(provenance), provenance)
        return self._loaded[name]

    def named(self, source: Provenance) -> str | None:
        """The model that a picture of `source` was drawn by; None where this server has no such model."""
        if source.quantized and Path(source.quantized).stem == INT8:
            return INT8
        known = {name: one for name, one in self._known.items() if name != INT8 or one.quantized}
        return next((name for name, one in known.items() if _files(one) == _files(source)), None)

    def defaults(self, name: str) -> dict[str, Any]:
        """What the model called `name` decides where a request leaves it open, by its yaml."""
        own = read_config(self._known[self.check(name)].config or TINY_CONFIG).get("defaults", {})
        return {key: own.get(key, value) for key, value in DEFAULTS.items()}

    def is_loaded(self, name: str) -> bool:
        """Whether `get` answers at once."""
        return name in self._loaded

    def _make_int8(self, provenance: Provenance) -> Path:
        from quantize.files.write import Content, hash_files, write_quantized
        from quantize.selection import default_selection, make_plan

        path = self._folder / f"{INT8}.safetensors"
        if not path.exists():
            model = load_pipeline(replace(provenance, device="cpu", dtype="fp32", save_memory=False)).model
            plan = make_plan(model, default_selection(INT8_SCHEME))
            content = Content(plan, sources=hash_files(files_of(provenance)))
            write_quantized(path, model, model.state_dict().items(), content)
        return path


def _files(source: Provenance) -> tuple[Any, ...]:
    """What tells models apart, as people named it."""
    return source.config, source.weights, source.quantized, source.branches, source.loras


def files_of(provenance: Provenance) -> list[str]:
    """The files that a model of `provenance` is loaded from."""
    config = Path(provenance.config or TINY_CONFIG)
    listed = [(config.parent / name).as_posix() for name in read_config(config).get("weights", [])]
    own = [provenance.quantized] if provenance.quantized else list(provenance.weights) or listed
    return [*own, *provenance.branches, *(parse_lora(one)[0] for one in provenance.loras)]


def name_of(main: Provenance) -> str:
    """What the model of the command line is called: after its last file, or its yaml."""
    if main.quantized or main.weights:
        return file_stem(main.quantized or main.weights[-1])
    return Path(main.config).stem if main.config else TINY


def parse_model(text: str, like: Provenance) -> tuple[str, Provenance]:
    """The name and the files of `NAME=YAML[,FILE...]`; device and precision as of `like`.

    ValueError or FileNotFoundError in one sentence.
    """
    name, _, rest = text.partition("=")
    config, *files = rest.split(",")
    if not NAME.fullmatch(name) or not config:
        words = "write NAME=YAML, or NAME=YAML,FILE,FILE with its weights; NAME has letters, digits and .-_"
        raise ValueError(f"--model {text}: {words}")
    for path in (config, *files):
        if not Path(path).exists():
            raise FileNotFoundError(f"--model {name}: {path} is not there")
    how = Provenance(config=config, device=like.device, dtype=like.dtype, save_memory=like.save_memory)
    if len(files) == 1 and _is_quantized(files[0]):
        return name, replace(how, quantized=files[0])
    return name, replace(how, weights=tuple(files))


def _is_quantized(path: str) -> bool:
    from checkpoints.checkpoint import open_checkpoint

    return open_checkpoint(path).is_quantized
