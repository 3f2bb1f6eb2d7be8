"""A file says what it is where that can be told, and keeps what its source said."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tools.convert.files import SourceWeights, open_as_it_is

TO_K = "transformer_blocks.0.attn2.to_k.weight"


def describe(tensors, title, metadata, prediction=None):
    return SourceWeights(Path(f"{title}.ckpt"), {}, metadata, prediction, ()).about(tensors)


def prediction_in(metadata, folder):
    save_file({"a": torch.ones(1)}, folder / "a.safetensors", metadata)
    return open_as_it_is(folder / "a.safetensors").prediction


def state(prefix="model.diffusion_model.", width=768):
    return {f"{prefix}{TO_K}": torch.empty(8, width, device="meta")}


@pytest.mark.parametrize(
    ("prefix", "width", "prediction", "architecture"),
    [
        ("model.diffusion_model.", 768, None, "stable-diffusion-v1"),
        ("control_model.", 768, None, "stable-diffusion-v1/controlnet"),
        ("model.diffusion_model.", 1024, "epsilon", "stable-diffusion-v2-512"),
        ("model.diffusion_model.", 1024, "v_prediction", "stable-diffusion-v2-768-v"),
    ],
)
def test_the_architecture_follows_from_the_text_and_the_prediction(
    tmp_path, prefix, width, prediction, architecture
):
    told = describe(state(prefix, width), "mine", {}, prediction)
    assert told["modelspec.architecture"] == architecture
    assert told["modelspec.title"] == "mine"
    assert "lllyasviel" in told["modelspec.implementation"]
    assert prediction_in(told, tmp_path) == (prediction or "epsilon")


def test_files_under_diffusers_names_say_so():
    theirs = {"controlnet_mid_block.weight": torch.empty(1), TO_K: torch.empty(8, 768)}
    told = describe(theirs, "mine", {})
    assert told["modelspec.implementation"] == "diffusers"
    assert told["modelspec.architecture"] == "stable-diffusion-v1/controlnet"


@pytest.mark.parametrize(("width", "prediction"), [(32, "epsilon"), (1024, None)])
def test_what_cannot_be_told_is_not_said(width, prediction):
    assert describe(state(width=width), "mine", {"author": "me"}, prediction) == {"author": "me"}


def test_what_the_source_said_stays_but_for_its_checksum(tmp_path):
    source = {"modelspec.title": "theirs", "sshs_model_hash": "12", "modelspec.prediction_type": "v"}
    told = describe(state(width=1024), "mine", source)
    assert told["modelspec.title"] == "theirs"
    assert told["modelspec.architecture"] == "stable-diffusion-v2-768-v"
    assert "sshs_model_hash" not in told
    assert prediction_in({}, tmp_path) is None
