"""The tiny model's training: exact resuming, and what each stage may touch."""

import pytest
import torch
from safetensors.torch import load_file

from cldm.model import create_model, load_model
from trainer.tiny import command as train_tiny
from trainer.tiny.data import PATCH, PATCHES, SIDE, VAE_BATCH, TinyScenes
from trainer.tiny.export import export, keep_branch
from trainer.tiny.settings import TinySettings
from trainer.tiny.stages import STAGES, mostly
from trainer.tiny.worlds import ShapesWorld

SHAPES = ShapesWorld()
FILES = ["tiny.safetensors", "tiny_control.safetensors"]


def run(folder, **steps):
    """Train to the given steps of each stage, one optimizer step being one call of the real command."""
    argv = ["--out", str(folder), "--cache", "8", "--workers", "0", "--device", "cpu"]
    for name in STAGES:
        argv += [f"--{name}-steps", str(steps.get(name, 0))]
    assert train_tiny.main(argv) == 0
    files = {name: folder / f"{name}.pt" for name in STAGES}
    return {name: torch.load(file, weights_only=True) for name, file in files.items() if file.exists()}


@pytest.mark.slow  # several seconds a step
def test_two_steps_equal_one_and_one_more_to_the_bit(tmp_path):
    whole = run(tmp_path / "a", vae=2, base=2, control=2)
    run(tmp_path / "b", vae=2, base=1)
    halves = run(tmp_path / "b", vae=2, base=2, control=2)
    for name in STAGES:
        for key, value in whole[name]["ema"].items():
            assert torch.equal(value, halves[name]["ema"][key]), (name, key)


def test_a_stage_without_its_foundation_is_refused_in_a_sentence(tmp_path, capsys):
    assert train_tiny.main(["--out", str(tmp_path), "--stages", "control", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == f"control builds on vae, but {tmp_path} has no vae.pt\n"
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_another_list_of_words_are_refused(tmp_path, capsys):
    (tmp_path / train_tiny.NAMES).write_text("cat\ndog")
    assert train_tiny.main(["--out", str(tmp_path), "--stages", "vae", "--device", "cpu"]) == 2
    assert "holds checkpoints of another list of words" in capsys.readouterr().err


def test_only_trained_parts_are_written(tmp_path):
    model = create_model(train_tiny.CONFIG)
    assert export(model, tmp_path, ["vae"], FILES) == []
    assert [path.name for path in export(model, tmp_path, ["vae", "base"], FILES)] == [FILES[0]]
    assert len(export(model, tmp_path, STAGES, FILES)) == 2


def test_a_kept_branch_fits_the_model(tmp_path):
    branch = create_model(train_tiny.CONFIG).control_model
    kept = keep_branch(dict(branch.named_parameters()), tmp_path, 300)
    assert kept.name == "control-300.safetensors"
    model = load_model(train_tiny.CONFIG, train_tiny.CONFIG.parent / FILES[0], kept)
    for name, value in branch.named_parameters():
        assert torch.equal(model.control_model.get_parameter(name), value.half().float())


def test_a_new_branch_begins_as_a_copy_of_the_shipped_encoder(tmp_path):
    argv = ["--out", str(tmp_path), "--from-shipped", "--new-branch", "--stages", "decoder"]
    assert train_tiny.main([*argv, "--decoder-steps", "0", "--device", "cpu"]) == 0
    branch, base = (load_file(tmp_path / name) for name in reversed(FILES))
    for name in ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.2.out_layers.3.weight"):
        assert torch.equal(branch[f"control_model.{name}"], base[f"model.diffusion_model.{name}"])
    assert not branch["control_model.zero_convs.3.0.weight"].any()


def test_a_loss_that_is_not_finite_changes_nothing(tmp_path):
    run = train_tiny.Run(STAGES["control"], create_model(train_tiny.CONFIG), tmp_path / "control.pt")
    before = {name: value.clone() for name, value in run.parts.named_parameters()}
    with pytest.raises(FloatingPointError, match=r"the loss of step 0 is nan; .*control.pt keeps"):
        run.update(sum(value.sum() for value in run.parts.parameters()) * torch.nan, 10)
    assert all(torch.equal(before[name], value) for name, value in run.parts.named_parameters())


def test_training_the_shipped_model_on_begins_with_its_weights(tmp_path):
    argv = ["--out", str(tmp_path), "--from-shipped", "--stages", "decoder", "--decoder-steps", "0"]
    assert train_tiny.main([*argv, "--device", "cpu"]) == 0
    for name in FILES:
        again, shipped = load_file(tmp_path / name), load_file(train_tiny.CONFIG.parent / name)
        assert again.keys() == shipped.keys()
        assert all(torch.equal(again[key], shipped[key]) for key in shipped)


@pytest.mark.parametrize("stage", ["vae", "decoder", "whole"])
def test_sample_i_is_always_the_same(stage):
    first, again = TinyScenes(SHAPES, stage, 3)[17], TinyScenes(SHAPES, stage, 3)[17]
    assert torch.equal(first["target"], again["target"])
    assert not torch.equal(first["target"], TinyScenes(SHAPES, stage, 4)[17]["target"])


def test_patches_are_cut_from_seven_pictures_in_eight():
    data = TinyScenes(SHAPES, "vae", 0)
    shapes = {data[index * VAE_BATCH]["target"].shape for index in range(8)}
    assert shapes == {(1, 3, SIDE, SIDE), (PATCHES, 3, PATCH, PATCH)}


def test_the_learning_rate_rises_then_falls():
    rates = [train_tiny.learning_rate(step, 1000, 1.0) for step in range(1000)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) <= 1.0
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)


def test_no_training_scene_is_held_out(monkeypatch):
    from scenes.shape_scenes import is_held_out

    data = TinyScenes(SHAPES, "control", 0)
    for index in range(300):
        scene = data.scene(index)
        assert not is_held_out(scene.fill, scene.shape, scene.background)


def test_whitening_leaves_decoded_pictures_as_they_are(monkeypatch):
    from trainer.tiny import latents as tiny_latents

    torch.manual_seed(0)
    model = create_model(train_tiny.CONFIG).requires_grad_(False)
    monkeypatch.setattr(tiny_latents, "WHITEN_SCENES", 8)
    pixels = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    vae = model.first_stage_model
    before = vae.decode(vae.encode(pixels).mode())
    tiny_latents.whiten(model, TinySettings())
    torch.testing.assert_close(vae.decode(vae.encode(pixels).mode()), before, rtol=1e-4, atol=1e-4)
    latents = tiny_latents.encode_scenes(model, SHAPES, 0, 8)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), rtol=1e-3, atol=0)


def test_posed_scenes_stand_exact_and_upright_in_the_middle():
    posed, free = TinyScenes(SHAPES, "unet", 0, lambda index: 1.0), TinyScenes(SHAPES, "unet", 0)
    for index in range(40):
        scene, other = posed.scene(index), free.scene(index)
        assert (scene.shape, scene.fill, scene.background) == (other.shape, other.fill, other.background)
        assert scene.wobble == 0
        assert abs(scene.angle) < 0.1
        assert all(0.4 < place < 0.6 for place in scene.centre)


def test_the_share_of_posed_scenes_is_the_one_asked_for():
    data, free = TinyScenes(SHAPES, "unet", 0, mostly), TinyScenes(SHAPES, "unet", 0)
    moved = sum(data.scene(index) != free.scene(index) for index in range(300))
    assert 0.7 < moved / 300 < 0.9


def test_the_unet_stage_moves_the_unet_alone():
    model = create_model(train_tiny.CONFIG).to(memory_format=torch.channels_last)
    model.requires_grad_(False)
    stage = STAGES["unet"]
    stage.trained(model)
    batch = {"latent": torch.randn(2, 4, 16, 16), "prompt": ["red circle with blue background", ""]}
    loss = stage.loss(model, batch, torch.Generator().manual_seed(0))
    assert loss.dtype == torch.float32
    loss.backward()
    changed = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert changed == {"model"}
