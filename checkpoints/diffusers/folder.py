"""Folders in diffusers' form: a whole pipeline, or one part of it.

A pipeline has model_index.json and a folder for each part; a part has config.json and its weights, in one
file or in shards that an index lists, as safetensors or as pickle, at times only in half precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from checkpoints.files.headers import parse_settings, read_header
from checkpoints.names.diffusers import COMPONENTS, detect_component

CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "controlnet": "ControlNetModel",
}
INDEX = "model_index.json"  # of a whole pipeline
CONFIG = "config.json"  # of each of its parts
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # diffusers', transformers', its older one
SUFFIXES = (".safetensors", ".bin")  # in this order: safe before pickled
VARIANTS = ("", ".fp16", ".bf16")  # the first that is there: precision before size
SCHEDULER = Path("scheduler", "scheduler_config.json")
OTHER_MODELS = ("text_encoder_2", "text_encoder_3", "transformer", "prior")  # of pipelines not SD 1 or 2


@dataclass(frozen=True)
class Component:
    """One part of a model on disk: an entry of COMPONENTS, its files, and what its config.json says."""

    part: str
    folder: Path
    files: tuple[Path, ...]
    config: Mapping[str, Any]


def find_components(folder: Path) -> dict[str, Component]:
    """The parts that a folder in diffusers' form holds, by entry of COMPONENTS; empty for another folder.

    Raises FileNotFoundError or ValueError for one that is not whole, or does not agree with itself.
    """
    if not folder.is_dir():
        return {}
    index = read_settings(folder / INDEX)
    _check_pipeline(folder, index)
    parts = [name for name in COMPONENTS if _is_part(folder / name)]
    if index or parts:
        found = [_component(folder / name, name) for name in parts]
        return {one.part: one for one in found if one}
    alone = _component(folder, None) if _is_part(folder) else None
    return {alone.part: alone} if alone else {}


def check_component(component: Component, names: Iterable[str]) -> None:
    """Raise ValueError unless the weights with these names are those of the part that its settings say."""
    found, wanted = detect_component(names), CLASSES[component.part]
    if found is None:
        some = next(iter(names))
        raise ValueError(f"the weights of {component.folder} are no {wanted}: they hold names such as {some}")
    if found != component.part:
        raise ValueError(
            f"{component.folder}: {CONFIG} says {wanted}, but the weights are those of a {CLASSES[found]}"
        )


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON file of settings; empty where there is none. Raises ValueError for a damaged one."""
    return parse_settings(path.read_bytes(), path) if path.is_file() else {}


def _check_pipeline(folder: Path, index: Mapping[str, Any]) -> None:
    if any(_listed(index, name) or (folder / name / CONFIG).is_file() for name in OTHER_MODELS):
        kind = index.get("_class_name", "pipeline of another family")
        raise ValueError(f"{folder} is a {kind}: take a folder of Stable Diffusion 1.x or 2.x")
    if (folder / "controlnet_1").is_dir():
        raise ValueError(f"{folder} holds several control branches: give one of them by its own folder")
    for name in COMPONENTS:
        if _listed(index, name) and not (folder / name).is_dir():
            raise FileNotFoundError(
                f"{folder / INDEX} lists {name}, but there is no such folder: fetch {folder.name} whole"
            )


def _listed(index: Mapping[str, Any], name: str) -> bool:
    entry = index.get(name)
    return isinstance(entry, list) and any(entry)  # [null, null] says that there is none


def _is_part(folder: Path) -> bool:
    config = folder / CONFIG
    if config.is_file() and read_settings(config).keys() & {"_class_name", "architectures"}:
        return True
    return next(_weights(folder), None) is not None


def _component(folder: Path, part: str | None) -> Component | None:
    """The part in `folder`: where `part` is None its config tells which, else its weights do, else none."""
    config = read_settings(folder / CONFIG)
    said = config.get("_class_name") or config.get("architectures")
    found = str((said[0] if said and isinstance(said, list) else said) or "")
    known = {kind: name for name, kind in CLASSES.items()}
    if found and (found not in known or part not in (None, known[found])):
        wanted = CLASSES[part] if part else ", ".join(known)
        raise ValueError(f"{folder} holds {found}, where Stable Diffusion has {wanted}")
    files = next(_weights(folder), None)
    if files is None:
        stem = STEMS[found == CLASSES["text_encoder"] or part == "text_encoder"]
        raise FileNotFoundError(f"{folder} holds no weights: fetch its {stem}.safetensors")
    part = part or known.get(found) or detect_component(read_header(files[0]).tensors)
    return Component(part, folder, files, config) if part else None


def _weights(folder: Path) -> Iterator[tuple[Path, ...]]:
    """The files of each whole set of weights in `folder`, best first."""
    for variant, suffix, stem in product(VARIANTS, SUFFIXES, STEMS):
        if (file := folder / f"{stem}{variant}{suffix}").is_file():
            yield (file,)
        for index in (f"{stem}{variant}{suffix}.index.json", f"{stem}{suffix}.index{variant}.json"):
            if (folder / index).is_file():
                yield _shards(folder / index)


def _shards(index: Path) -> tuple[Path, ...]:
    listed = read_settings(index).get("weight_map")
    if not isinstance(listed, dict):
        raise ValueError(f"{index} has no weight_map: fetch it again")
    shards = sorted({str(name) for name in listed.values()})
    for shard in shards:
        if Path(shard).name != shard or shard in ("", ".."):  # an index is a stranger's too
            raise ValueError(f"{index} names a file outside its folder, {shard!r}: refused")
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(f"{index.parent} lacks {shard}, which its index lists: fetch it too")
    return tuple(index.parent / shard for shard in shards)
