"""What a float model is run on before it is quantized: every picture, every prompt, in known words."""

import pytest
from omegaconf import OmegaConf
from PIL import Image

from cldm.pipeline import Pipeline
from quantize.timesteps import TimestepGroups, current_group
from tests.small_files import SIDE, write_small_model
from tools.compress.calibration import Example, Runs, control_of, examples_in, follow_model


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "red_star"):
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / f"{name}.png")
    return tmp_path


def config(folder, prompts=()):
    path = folder / "model.yaml"
    OmegaConf.save({"model": {}, "calibration": list(prompts)}, path)
    return path


def test_without_a_list_a_picture_is_called_by_its_name(folder):
    assert [one.prompt for one in examples_in(folder, config(folder))] == ["a", "red star"]


def test_a_text_beside_a_picture_comes_before_the_list(folder):
    (folder / "a.txt").write_text("a cyan circle")
    found = examples_in(folder, config(folder, ["one", "two"]))
    assert found[0] == Example(folder / "a.png", "a cyan circle")
    assert [one.prompt for one in found[1:]] == ["one", "two"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_prompt_and_every_picture_comes_up(folder, count):
    prompts = [f"prompt {number}" for number in range(count)]
    found = examples_in(folder, config(folder, prompts))
    assert {one.prompt for one in found} == set(prompts)
    assert {one.image.stem for one in found} == {"a", "red_star"}
    assert len(found) == max(count, 2)


def test_an_empty_folder_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="has no pictures"):
        examples_in(tmp_path, config(tmp_path))


def test_files_tell_their_control(tmp_path):
    assert control_of([tmp_path / "base.ckpt", tmp_path / "control_v11p_sd15_canny.pth"]) == "canny"
    assert control_of([tmp_path / "tiny.safetensors"]) == "scribble"


def test_runs_pass_every_group_of_timesteps_and_end_outside_of_them(folder):
    pipeline = Pipeline.from_files(write_small_model(folder), device="cpu")
    seen = set()
    unet = pipeline.model.model.diffusion_model
    unet.middle_block.register_forward_hook(lambda *_: seen.add(current_group()))
    with follow_model(pipeline.model, TimestepGroups.even(1000, 3)):
        Runs([Example(folder / "a.png", "a circle")], steps=6).play(pipeline)
    assert seen == {0, 1, 2}
    assert current_group() is None
    assert not pipeline.model.control_model._forward_pre_hooks
