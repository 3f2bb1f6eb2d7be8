"""The names of diffusers and the original ones: one table each, there and back at any width and depth."""

import pytest
import torch

from checkpoints.names import diffusers as names
from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.unet import UNetModel

SMALL = {
    "in_channels": 4, "model_channels": 8, "attention_resolutions": [2, 1], "num_res_blocks": 1,
    "channel_mult": [1, 2], "num_heads": 2, "context_dim": 6, "num_groups": 4,
}  # fmt: skip
DEEP = SMALL | {
    "channel_mult": [1, 2, 3, 3], "attention_resolutions": [4, 1], "num_res_blocks": 3,
    "use_linear_in_transformer": True, "transformer_depth": 2,
}  # fmt: skip
FLAT = SMALL | {"channel_mult": [1], "attention_resolutions": [], "num_res_blocks": 2}


def assert_same(got, expected):
    assert list(got) == list(expected)
    assert all(got[name].dtype == expected[name].dtype for name in expected)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def vae(mult=(1, 2, 2), blocks=1):
    torch.manual_seed(0)
    inner = {"z_channels": 3, "ch": 4, "ch_mult": list(mult), "num_res_blocks": blocks, "num_groups": 2}
    return AutoencoderKL(embed_dim=3, ddconfig=inner).state_dict()


def open_clip(layers=3, width=4, seed=0):
    """State of open_clip's text half; every tensor drawn, so that a swap shows."""
    noise = torch.Generator().manual_seed(seed)
    shapes = {
        "model.positional_embedding": (7, width), "model.text_projection": (width, width),
        "model.logit_scale": (), "model.token_embedding.weight": (9, width),
    }  # fmt: skip
    for block in range(layers):
        start = f"model.transformer.resblocks.{block}."
        shapes |= {f"{start}{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in KINDS}
        shapes |= {
            f"{start}attn.in_proj_weight": (3 * width, width),
            f"{start}attn.in_proj_bias": (3 * width,),
        }
        shapes |= {f"{start}attn.out_proj.weight": (width, width), f"{start}attn.out_proj.bias": (width,)}
        shapes |= {f"{start}mlp.c_fc.weight": (2 * width, width), f"{start}mlp.c_fc.bias": (2 * width,)}
        shapes |= {f"{start}mlp.c_proj.weight": (width, 2 * width), f"{start}mlp.c_proj.bias": (width,)}
    shapes |= {"model.ln_final.weight": (width,), "model.ln_final.bias": (width,)}
    return {name: torch.randn(shape, generator=noise) for name, shape in shapes.items()}


KINDS = ("weight", "bias")


@pytest.mark.parametrize("params", [SMALL, DEEP, FLAT], ids=["small", "deep", "flat"])
def test_a_unet_comes_back_bit_for_bit(params):
    state = UNetModel(**params).state_dict()
    theirs = names.COMPONENTS["unet"].to_diffusers(state)
    assert len(theirs) == len(state)
    assert not theirs.keys() & state.keys()
    assert_same(names.COMPONENTS["unet"].from_diffusers(theirs), state)


@pytest.mark.parametrize(("mult", "blocks"), [((1,), 1), ((1, 2), 3), ((1, 2, 2), 1)], ids=str)
def test_an_autoencoder_comes_back_bit_for_bit(mult, blocks):
    state = vae(mult, blocks)
    theirs = names.COMPONENTS["vae"].to_diffusers(state)
    assert_same(names.COMPONENTS["vae"].from_diffusers(theirs), state)
    assert theirs["encoder.mid_block.attentions.0.to_q.weight"].ndim == 2


def test_old_names_of_the_autoencoders_attention_are_understood():
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = vae()
    theirs = {}
    for name, tensor in names.COMPONENTS["vae"].to_diffusers(state).items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        theirs[name] = tensor
    assert any(".query." in name for name in theirs)
    assert_same(names.COMPONENTS["vae"].from_diffusers(theirs), state)
    four_axes = {
        name: tensor[:, :, None, None] if ".attentions." in name and tensor.ndim == 2 else tensor
        for name, tensor in theirs.items()
    }
    assert_same(names.COMPONENTS["vae"].from_diffusers(four_axes), state)


def test_an_open_clip_encoder_comes_back_but_for_what_never_runs():
    state = open_clip(layers=3)
    theirs = names.OPEN_CLIP.to_diffusers(state)
    assert "text_model.encoder.layers.1.self_attn.q_proj.weight" in theirs
    assert not any(".layers.2." in name or "projection" in name for name in theirs)
    back = names.OPEN_CLIP.from_diffusers(theirs)
    unused = {"model.text_projection", "model.logit_scale"}
    unused |= {name for name in state if ".resblocks.2." in name}
    assert back.keys() == state.keys() - {"model.logit_scale"}  # that one the text encoder fills in
    for name in back.keys() - unused:
        assert torch.equal(back[name], state[name])
    for name in back.keys() & unused:
        assert back[name].shape == state[name].shape
        assert not back[name].any()  # a block of zeros passes on what it gets
    assert_same(names.OPEN_CLIP.to_diffusers(back), theirs)


def test_newer_text_encoder_files_without_the_text_model_level_are_the_same():
    theirs = names.OPEN_CLIP.to_diffusers(open_clip())
    newer = {name.removeprefix("text_model."): tensor for name, tensor in theirs.items()}
    assert_same(names.OPEN_CLIP.from_diffusers(newer), names.OPEN_CLIP.from_diffusers(theirs))


def test_a_clip_encoder_loses_only_its_positions_which_count_themselves():
    state = {
        "transformer.text_model.embeddings.position_ids": torch.arange(5)[None],
        "transformer.text_model.final_layer_norm.bias": torch.ones(2),
    }
    assert list(names.COMPONENTS["text_encoder"].to_diffusers(state)) == ["text_model.final_layer_norm.bias"]


@pytest.mark.parametrize("level", ["", "text_model."])
@pytest.mark.parametrize(("width", "open_clip"), [(768, None), (1024, None), (8, True), (1024, False)])
def test_a_text_encoder_is_told_by_its_settings_else_by_its_width(level, width, open_clip):
    state = {f"{level}embeddings.position_embedding.weight": torch.empty(2, width, device="meta")}
    is_open_clip = width == 1024 if open_clip is None else open_clip
    name = next(iter(names.to_original(state, "text_encoder", open_clip=open_clip)))
    assert name == "cond_stage_model." + (
        "model.positional_embedding" if is_open_clip else f"{level}embeddings.position_embedding.weight"
    )


def test_original_names_have_the_parts_prefix():
    theirs = names.COMPONENTS["vae"].to_diffusers(vae())
    assert_same(
        names.to_original(theirs, "vae"),
        {f"first_stage_model.{name}": tensor for name, tensor in vae().items()},
    )


@pytest.mark.parametrize("part", ["unet", "controlnet", "vae"])
def test_a_stranger_keeps_its_name_for_the_strict_load_to_report(part):
    ways = names.COMPONENTS[part]
    for convert in (ways.to_diffusers, ways.from_diffusers):
        assert list(convert({"stranger.weight": torch.ones(1)})) == ["stranger.weight"]


@pytest.mark.parametrize(
    ("sign", "part"),
    [
        ("up_blocks.0.resnets.0.norm1.weight", "unet"),
        ("controlnet_mid_block.weight", "controlnet"),
        ("decoder.up_blocks.0.resnets.0.norm1.weight", "vae"),
        ("text_model.embeddings.position_embedding.weight", "text_encoder"),
        ("embeddings.position_embedding.weight", "text_encoder"),
        ("model.diffusion_model.out.0.weight", None),
    ],
)
def test_a_part_is_known_by_one_of_its_names(sign, part):
    assert names.detect_component({"conv_in.weight", sign}) == part
