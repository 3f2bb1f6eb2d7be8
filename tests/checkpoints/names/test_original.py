"""Every published form of a checkpoint gets the names of a whole model, and what is dropped is said."""

import pytest
import torch

from checkpoints.names.original import UNUSED_TEXT, ema_names, normalize_names, part_of

ONE = torch.ones(1)


def named(*names):
    return {name: torch.full((1,), float(index)) for index, name in enumerate(names)}


def test_a_whole_model_keeps_its_names_and_tensors():
    state = named("betas", "control_model.time_embed.0.weight", "model.diffusion_model.out.0.bias")
    kept, dropped, _ = normalize_names(state)
    assert list(kept) == list(state)
    assert all(kept[name] is state[name] for name in state)
    assert not dropped


@pytest.mark.parametrize(
    ("sign", "prefix"),
    [
        ("input_hint_block.0.weight", "control_model."),
        ("output_blocks.0.0.in_layers.0.weight", "model.diffusion_model."),
        ("post_quant_conv.weight", "first_stage_model."),
    ],
)
def test_a_part_stored_alone_gets_its_prefix(sign, prefix):
    kept, *_ = normalize_names(named("conv.weight", sign))
    assert list(kept) == [prefix + "conv.weight", prefix + sign]


def test_a_part_with_its_prefix_gets_no_second_one():
    state = named("control_model.input_hint_block.0.weight", "control_model.time_embed.0.bias")
    assert list(normalize_names(state)[0]) == list(state)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model_ema.diffusion_modelout0bias", "moving averages"),
        ("model_ema.decay", "moving averages"),
        ("cond_stage_model.transformer.text_model.embeddings.position_ids", "positions"),
        ("first_stage_model.loss.logvar", "loss"),
        ("cond_stage_model.logit_scale", "never runs"),
        ("cond_stage_model.transformer.text_projection.weight", "never runs"),
    ],
)
def test_what_is_dropped_has_a_reason(name, reason):
    kept, dropped, _ = normalize_names(named(name, "model.diffusion_model.out.0.bias"))
    assert list(kept) == ["model.diffusion_model.out.0.bias"]
    assert list(dropped.values()) == [1]
    assert reason in next(iter(dropped))


def test_the_loss_of_an_autoencoder_stored_alone_is_dropped_too():
    kept, dropped, _ = normalize_names(named("post_quant_conv.weight", "loss.discriminator.main.0.weight"))
    assert list(kept) == ["first_stage_model.post_quant_conv.weight"]
    assert sum(dropped.values()) == 1


def test_newer_names_of_the_text_encoder_become_the_published_ones():
    kept, dropped, _ = normalize_names(named("cond_stage_model.transformer.encoder.layers.0.mlp.fc1.bias"))
    assert list(kept) == ["cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.bias"]
    assert not dropped


def test_an_open_clip_text_encoder_keeps_its_temperature():
    names = ("cond_stage_model.model.logit_scale", "cond_stage_model.model.transformer.resblocks.0.ln_1.bias")
    kept, dropped, _ = normalize_names(named(*names))
    assert list(kept) == list(names)
    assert UNUSED_TEXT not in dropped


def test_moving_averages_take_the_place_of_the_weights_they_belong_to():
    own = ("model.diffusion_model.input_blocks.1.0.in_layers.0.weight", "control_model.out.bias")
    average = "model_ema.diffusion_modelinput_blocks10in_layers0weight"
    state = {own[0]: torch.zeros(1), own[1]: torch.zeros(1), average: ONE, "model_ema.decay": ONE}
    kept, dropped, _ = normalize_names(state, use_ema=True)
    assert kept[own[0]] is ONE
    assert kept[own[1]] is state[own[1]]
    assert sum(dropped.values()) == 1  # the decay alone: the average is used


def test_an_average_that_two_weights_would_share_is_refused():
    with pytest.raises(ValueError, match=r"model.a.1.10 and model.a.11.0 would share .* model_ema.a110"):
        ema_names(["model.a.1.10", "model.a.11.0"])


def test_a_part_under_diffusers_names_gets_the_original_ones():
    theirs = named("conv_in.bias", "controlnet_mid_block.weight", "down_blocks.0.resnets.0.norm1.bias")
    kept, dropped, _ = normalize_names(theirs)
    assert list(kept) == [
        "control_model.input_blocks.0.0.bias",
        "control_model.middle_block_out.0.weight",
        "control_model.input_blocks.1.0.in_layers.0.bias",
    ]
    assert [id(tensor) for tensor in kept.values()] == [id(tensor) for tensor in theirs.values()]
    assert not dropped


@pytest.mark.parametrize("level", ["", "text_model."])
def test_a_text_encoder_of_diffusers_gets_the_published_names_and_loses_what_never_runs(level):
    state = named(f"{level}final_layer_norm.bias", "text_projection.weight")
    state[f"{level}embeddings.position_embedding.weight"] = torch.ones(7, 2)
    kept, dropped, _ = normalize_names(state)
    start = "cond_stage_model.transformer.text_model."
    assert set(kept) == {
        f"{start}final_layer_norm.bias",
        f"{start}embeddings.position_embedding.weight",
        f"{start}embeddings.position_ids",
    }
    assert dropped == {UNUSED_TEXT: 1}


def test_positions_of_an_sd2_text_encoder_are_dropped_with_their_reason():
    state = {"text_model.embeddings.position_embedding.weight": torch.ones(7, 1024)}
    state["text_model.encoder.layers.0.layer_norm1.bias"] = torch.ones(1024)
    state["text_model.embeddings.position_ids"] = torch.arange(7)[None]
    kept, dropped, _ = normalize_names(state)
    assert set(kept) == {
        "cond_stage_model.model.positional_embedding",
        "cond_stage_model.model.transformer.resblocks.0.ln_1.bias",
        "cond_stage_model.model.transformer.resblocks.1.ln_1.bias",  # stored, never run
        "cond_stage_model.model.logit_scale",
    }
    assert [reason[:9] for reason in dropped] == ["positions"]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("lora_unet_mid_block_attentions_0.lora_down.weight", "a LoRA, .* by --lora"),
        ("lora_unet_mid_block_attentions_0.hada_w1_a", "a LoHa"),
        ("lora_controlnet", "a Control-LoRA .* take a ControlNet file"),
    ],
)
def test_files_of_another_family_are_named(name, family):
    with pytest.raises(ValueError, match=family):
        normalize_names({name: ONE})


def test_every_part_has_a_name_for_messages():
    names = (
        "model.diffusion_model.x",
        "first_stage_model.x",
        "cond_stage_model.x",
        "control_model.x",
        "betas",
    )
    assert [part_of(name) for name in names] == [
        "U-Net", "autoencoder", "text encoder", "control branch", "schedule"
    ]  # fmt: skip
