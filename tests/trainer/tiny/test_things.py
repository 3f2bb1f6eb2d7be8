"""What only the model of things needs: a wider autoencoder, training base and branch together, its world."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from cldm.cldm import ControlLDM
from ldm.models.autoencoder import AutoencoderKL
from scenes.things.art import ART_FILE, MORE_FILE, Art, save_art
from scenes.things.words import words
from tests.small_art import small_art
from trainer.tiny.data import TinyScenes
from trainer.tiny.first_stage import widen_autoencoder
from trainer.tiny.recognizer import NETS, Examples, loss
from trainer.tiny.stages import ALONE_EVERY, STAGES, alone
from trainer.tiny.worlds import ThingsWorld, world_of


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("art")
    save_art(small_art(), folder / ART_FILE)
    save_art(small_art(), folder / MORE_FILE)
    return ThingsWorld(folder)


def autoencoder(z, ch=8):
    config = {"z_channels": z, "ch": ch, "ch_mult": [1, 1], "num_res_blocks": 1, "num_groups": 0}
    return AutoencoderKL(config, z).requires_grad_(False)


def test_a_widened_autoencoder_paints_what_the_old_one_did():
    torch.manual_seed(0)
    old, new = autoencoder(2), autoencoder(6)
    widen_autoencoder(new, old.state_dict())
    latent = torch.randn(1, 2, 4, 4)
    padded = torch.cat([latent, torch.zeros(1, 4, 4, 4)], dim=1)
    torch.testing.assert_close(new.decode(padded), old.decode(latent))
    pixels = torch.rand(1, 3, 8, 8)
    before, after = old.encode(pixels), new.encode(pixels)
    torch.testing.assert_close(after.mean[:, :2], before.mean)
    torch.testing.assert_close(after.std[:, :2], before.std)


def test_an_autoencoder_of_other_widths_is_refused():
    with pytest.raises(ValueError, match="differ by more than the number of latent channels"):
        widen_autoencoder(autoencoder(6), autoencoder(2, ch=16).state_dict())


def test_a_world_that_nobody_has_is_refused(tmp_path):
    with pytest.raises(ValueError, match="world: moons is unknown: use one of shapes, things"):
        world_of(OmegaConf.create({"world": "moons"}), tmp_path)


def test_samples_of_things_are_the_same_each_time(world):
    latents = np.zeros((6, 16, 16, 16), np.float16)
    first, again = (TinyScenes(world, "joint", 0, alone, latents) for _ in range(2))
    for index in range(4):
        one, other = first[index], again[index]
        assert one["prompt"] == other["prompt"]
        assert torch.equal(one["hint"], other["hint"])
        assert one["posed"] == (index % ALONE_EVERY == 0)


def test_facts_tell_words_and_colours_apart(world):
    seen = {}
    for index in range(60):
        scene = world.scene(np.random.default_rng(index), 1.0)
        key = (
            scene.things[0].sprite.word,
            scene.things[0].colour,
            scene.said_background and scene.background,
        )
        facts = tuple(world.facts(scene).tolist())
        assert seen.setdefault(facts, key) == key
    assert len(seen) == len(set(seen.values()))


def small_model():
    unet = {
        "in_channels": 4, "model_channels": 16, "attention_resolutions": [2], "num_res_blocks": 1,
        "channel_mult": [1, 2], "num_heads": 2, "context_dim": 8, "num_groups": 4,
    }  # fmt: skip
    vae = {"z_channels": 4, "ch": 4, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "num_groups": 0}
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "projection_dim": 8}  # fmt: skip
    embedder = "ldm.modules.encoders.modules.FrozenCLIPEmbedder"
    return ControlLDM(
        control_stage_config={"target": "cldm.cldm.ControlNet", "params": {**unet, "hint_channels": 3}},
        unet_config={"target": "cldm.cldm.ControlledUnetModel", "params": {**unet, "out_channels": 4}},
        first_stage_config={
            "target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 4, "ddconfig": vae},
        },
        cond_stage_config={"target": embedder, "params": {"max_length": 16, "config": text}},
        parameterization="v", timesteps=1000, linear_start=0.00085, linear_end=0.012,
        image_size=8, channels=4, scale_factor=1.0,
    )  # fmt: skip


def test_base_and_branch_learn_together_and_posed_samples_do_without_the_branch():
    torch.manual_seed(0)
    model, stage = small_model(), STAGES["joint"]
    parts = stage.trained(model)
    for value in parts.parameters():  # out of the zeros that both begin with
        value.data += 0.01 * torch.randn_like(value)
    batch = {
        "latent": torch.randn(3, 4, 8, 8), "prompt": ["a cat"] * 3, "hint": torch.rand(3, 3, 64, 64),
        "posed": torch.tensor([True, False, False]),
    }  # fmt: skip
    stage.loss(model, batch, torch.Generator().manual_seed(0)).backward()
    learning = {name.split(".")[0] for name, value in parts.named_parameters() if value.grad is not None}
    assert learning == {"unet", "branch"}
    assert all(value.grad is None for value in model.first_stage_model.parameters())
    assert model.model.diffusion_model.input_blocks[0][0].weight.grad.abs().sum() > 0
    alone_only = {**batch, "posed": torch.tensor([True, True, True])}
    model.zero_grad()
    stage.loss(model, alone_only, torch.Generator().manual_seed(0)).backward()
    assert not any(value.grad is not None and value.grad.any() for value in model.control_model.parameters())


@pytest.mark.parametrize("name", NETS)
def test_each_classifier_learns_from_its_own_data(name, world):
    data = Examples(NETS[name], world.folder)
    batch = torch.utils.data.default_collate([data[index] for index in range(4)])
    assert batch["image"].shape == (4, 3, 64, 64)
    assert torch.equal(data[1]["image"], data[1]["image"])
    net = NETS[name].build(tuple(words()))
    value = loss(net, batch, torch.Generator())
    value.backward()
    assert value.isfinite()
    assert all(list(words())[number] in Art(small_art()).words for number in batch["word"])
