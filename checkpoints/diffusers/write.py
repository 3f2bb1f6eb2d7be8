"""A model written as a folder that diffusers' pipelines read: parts, tokenizer, schedule and index.

diffusers is not needed here. Nothing is downloaded: the tokenizer is the one that prompts are read with here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from checkpoints.diffusers.configs import is_open_clip, part_config
from checkpoints.diffusers.folder import CLASSES, CONFIG, INDEX, SCHEDULER, STEMS
from checkpoints.files.lazy import Values
from checkpoints.files.write import SAFETENSORS, write_weights
from ldm.modules.encoders.tokenizer import MAX_TOKENS, OPEN_CLIP, OPENAI, shipped_merges, vocabulary_of

State = Mapping[str, Values]
Write = Callable[[Path, State], Any]

VERSION = "0.35.0"  # of diffusers, the oldest that these folders were tried with
SCHEDULER_CLASS = "DDIMScheduler"  # whose settings are ours, one for one
TOKENIZER_CLASS = "CLIPTokenizer"  # both families': only the padding differs
TOKENIZER_FILES = (
    "vocab.json", "tokenizer_config.json", "special_tokens_map.json", "merges.txt", "tokenizer.json"
)  # fmt: skip
MERGES_VERSION = "#version: 0.2"  # first line of a merges file, which readers skip
PIPELINES = {False: "StableDiffusionPipeline", True: "StableDiffusionControlNetPipeline"}  # with a branch?
TEXT = "text_encoder"  # the one part that is a class of transformers
LATENT_SIDE, FACTOR = 64, 8  # latent pixels where the yaml says nothing, and picture pixels for each of them


def write_pipeline(
    folder: Path, parts: Mapping[str, State], params: Mapping[str, Any], write: Write = write_weights
) -> None:
    """Write the parts, under diffusers' names, of a model with the yaml parameters `params` into `folder`.

    write: how a file of weights is written.
    """
    for part, state in parts.items():
        write_part(folder / part, part, state, params, write)
    _write_json(folder / SCHEDULER, {**_class(SCHEDULER_CLASS), **part_config("scheduler", params)})
    _write_tokenizer(folder / "tokenizer", params)
    index = {part: ["transformers" if part == TEXT else "diffusers", CLASSES[part]] for part in parts}
    index |= {"scheduler": ["diffusers", SCHEDULER_CLASS], "tokenizer": ["transformers", TOKENIZER_CLASS]}
    index |= dict.fromkeys(("feature_extractor", "image_encoder", "safety_checker"), [None, None])
    about = _class(PIPELINES["controlnet" in parts])
    _write_json(folder / INDEX, about | dict(sorted(index.items())) | {"requires_safety_checker": False})


def write_part(
    folder: Path, part: str, state: State, params: Mapping[str, Any], write: Write = write_weights
) -> None:
    """Write one part's settings and its weights, under diffusers' names, into `folder`."""
    side = params.get("image_size", LATENT_SIDE)
    sizes = {"unet": {"sample_size": side}, "vae": {"sample_size": side * FACTOR}}
    about = _class(CLASSES[part]) | sizes.get(part, {})
    if part == TEXT:
        about = {"architectures": [CLASSES[part]], "model_type": "clip_text_model"}
    _write_json(folder / CONFIG, about | part_config(part, params))
    write(folder / f"{STEMS[part == TEXT]}{SAFETENSORS}", state)


def _class(name: str) -> dict[str, Any]:
    return {"_class_name": name, "_diffusers_version": VERSION}


def _write_tokenizer(folder: Path, params: Mapping[str, Any]) -> None:
    version = (params["cond_stage_config"].get("params") or {}).get("version") or ""
    if own := [Path(version, name) for name in TOKENIZER_FILES if Path(version, name).is_file()]:
        folder.mkdir(parents=True, exist_ok=True)
        for file in own:
            shutil.copyfile(file, folder / file.name)
        return
    # transformers knows one spelling of the special tokens; only the padding differs between the families
    merges, vocabulary = shipped_merges(), vocabulary_of(shipped_merges(), OPENAI)
    pad_id = (OPEN_CLIP if is_open_clip(params) else OPENAI).pad_id
    pad = next(token for token, number in vocabulary.items() if number == pad_id)
    special = {"bos_token": OPENAI.bos, "eos_token": OPENAI.eos, "unk_token": OPENAI.eos, "pad_token": pad}
    settings = {"tokenizer_class": TOKENIZER_CLASS, "model_max_length": MAX_TOKENS, "do_lower_case": True}
    for name, content in zip(TOKENIZER_FILES, (vocabulary, settings | special, special), strict=False):
        _write_json(folder / name, content)
    lines = [MERGES_VERSION, *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
