"""A whole pipeline folder: diffusers and transformers read every part of it, and tokenize as we do."""

import json

import pytest
import torch

from checkpoints.diffusers.write import write_part, write_pipeline
from ldm.modules.encoders.tokenizer import OPEN_CLIP, OPENAI, shipped_tokenizer
from tests.small_models import SD21, settings

transformers = pytest.importorskip("transformers")
TEXTS = ["A photo of a Cat, 8k", "", "빨간 원과 파란 배경", "it's   naïve & bold - (masterpiece:1.2)"]
OPEN_CLIP_TEXT = {
    "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
    "params": {"config": {"width": 32, "heads": 4, "layers": 2, "embed_dim": 32}},
}
PARAMS = {
    "sd15": settings().model.params,
    "sd21": settings(SD21, cond_stage_config=OPEN_CLIP_TEXT, parameterization="v").model.params,
}


@pytest.mark.parametrize(("family", "dialect"), [("sd15", OPENAI), ("sd21", OPEN_CLIP)])
def test_transformers_tokenizes_as_we_do(tmp_path, family, dialect):
    write_pipeline(tmp_path, {}, PARAMS[family])
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert theirs.model_max_length == 77
    ids = theirs(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(ids, shipped_tokenizer(dialect)(TEXTS))


def test_the_index_names_the_parts_that_are_there(tmp_path):
    write_pipeline(tmp_path, {"unet": {}, "vae": {}, "text_encoder": {}}, PARAMS["sd15"])
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["safety_checker"] == [None, None]
    assert "controlnet" not in index
    write_pipeline(tmp_path, {"controlnet": {}}, PARAMS["sd15"])
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionControlNetPipeline"
    assert index["controlnet"] == ["diffusers", "ControlNetModel"]


@pytest.mark.parametrize(("family", "prediction"), [("sd15", "epsilon"), ("sd21", "v_prediction")])
def test_the_scheduler_is_the_published_one(tmp_path, family, prediction):
    diffusers = pytest.importorskip("diffusers")
    write_pipeline(tmp_path, {}, PARAMS[family])
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    assert scheduler.config.prediction_type == prediction
    assert scheduler.config.beta_schedule == "scaled_linear"


def test_settings_of_a_part_say_its_class_and_its_size(tmp_path):
    write_part(tmp_path / "unet", "unet", {"conv_in.weight": torch.ones(1)}, PARAMS["sd15"])
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert config["_class_name"] == "UNet2DConditionModel"
    assert config["cross_attention_dim"] == 32
    assert config["sample_size"] == 64


def test_a_tokenizer_of_the_yamls_own_folder_goes_along(tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text(f"own {name}")
    stage = PARAMS["sd15"].cond_stage_config | {"params": {"version": str(tmp_path)}}
    write_pipeline(tmp_path / "sd", {}, {**PARAMS["sd15"], "cond_stage_config": stage})
    assert {file.name: file.read_text() for file in (tmp_path / "sd" / "tokenizer").iterdir()} == {
        "vocab.json": "own vocab.json",
        "merges.txt": "own merges.txt",
    }
