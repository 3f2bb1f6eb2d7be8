"""Renamed state dicts have exactly the keys and shapes of the diffusers models that our yaml describes."""

import json
from pathlib import Path

import pytest
import torch

from checkpoints.diffusers import configs as form
from checkpoints.names import diffusers as names
from cldm.cldm import ControlledUnetModel, ControlNet
from ldm.config import create_meta_model, read_config
from ldm.models.autoencoder import AutoencoderKL

diffusers = pytest.importorskip("diffusers")

MODELS = Path(__file__).parents[3] / "models"
SMALL = {
    "in_channels": 4, "model_channels": 8, "attention_resolutions": [2], "num_res_blocks": 1,
    "channel_mult": [1, 2], "num_heads": 2, "context_dim": 6, "num_groups": 4,
}  # fmt: skip
DEEP = SMALL | {
    "channel_mult": [1, 2, 3], "attention_resolutions": [4, 1], "num_res_blocks": 3,
    "num_heads": -1, "num_head_channels": 4,
    "use_linear_in_transformer": True, "upcast_attention": True, "transformer_depth": 2,
}  # fmt: skip
FLAT = SMALL | {"channel_mult": [1], "attention_resolutions": [1], "num_res_blocks": 2}
V21 = ("v21", "v21_v")
NETWORKS = pytest.mark.parametrize("params", [SMALL, DEEP, FLAT], ids=["small", "deep", "flat"])


def config(part, inner):
    """Settings of a part whose own yaml parameters are `inner`."""
    stages = ("unet_config", "control_stage_config", "first_stage_config")
    return form.part_config(part, {stage: {"params": inner} for stage in stages})


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("config", "counts"), [("cldm_v15.yaml", (686, 340, 248)), ("cldm_v21.yaml", (686, 340, 248))]
)
def test_published_sizes_give_exactly_diffusers_keys_and_shapes(config, counts):
    ours, params = create_meta_model(MODELS / config), read_config(MODELS / config).model.params
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**form.part_config("unet", params))
        control = diffusers.ControlNetModel(**form.part_config("controlnet", params))
        vae = diffusers.AutoencoderKL(**form.part_config("vae", params))
    renamed = (
        names.COMPONENTS["unet"].to_diffusers(ours.model.diffusion_model.state_dict()),
        names.COMPONENTS["controlnet"].to_diffusers(ours.control_model.state_dict()),
        names.COMPONENTS["vae"].to_diffusers(ours.first_stage_model.state_dict()),
    )
    assert tuple(map(len, renamed)) == counts
    for state, theirs in zip(renamed, (unet, control, vae), strict=True):
        assert shapes(state) == shapes(theirs.state_dict())


@NETWORKS
def test_any_width_and_depth_of_unet_and_control_branch_maps(params):
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**form.part_config("unet", {"unet_config": {"params": params}}))
        control = diffusers.ControlNetModel(
            **form.part_config("controlnet", {"control_stage_config": {"params": params}})
        )
        ours = ControlledUnetModel(**params), ControlNet(**params)
    assert shapes(names.COMPONENTS["unet"].to_diffusers(ours[0].state_dict())) == shapes(unet.state_dict())
    assert shapes(names.COMPONENTS["controlnet"].to_diffusers(ours[1].state_dict())) == shapes(
        control.state_dict()
    )


@pytest.mark.parametrize("mult", [[1], [1, 2, 2]], ids=str)
def test_any_depth_of_autoencoder_maps(mult):
    inner = {"z_channels": 3, "ch": 4, "ch_mult": mult, "num_res_blocks": 1, "num_groups": 2}
    params = {"embed_dim": 3, "ddconfig": inner}
    with torch.device("meta"):
        theirs, ours = (diffusers.AutoencoderKL(**config("vae", params)), AutoencoderKL(**params))
    assert shapes(names.COMPONENTS["vae"].to_diffusers(ours.state_dict())) == shapes(theirs.state_dict())


def test_tensors_are_passed_on_and_only_the_autoencoders_convolutions_become_matrices():
    state = ControlNet(**SMALL).state_dict()
    before = {id(tensor) for tensor in state.values()}
    assert {id(tensor) for tensor in names.COMPONENTS["controlnet"].to_diffusers(state).values()} == before
    inner = {"z_channels": 3, "ch": 4, "ch_mult": [1], "num_res_blocks": 1, "num_groups": 2}
    vae = AutoencoderKL(embed_dim=3, ddconfig=inner).state_dict()
    query = names.COMPONENTS["vae"].to_diffusers(vae)["encoder.mid_block.attentions.0.to_q.weight"]
    assert torch.equal(query[:, :, None, None], vae["encoder.mid.attn_1.q.weight"])


@pytest.mark.parametrize("config", ["cldm_v15.yaml", "cldm_v21.yaml"])
def test_published_names_come_back_in_their_order(config):
    ours = create_meta_model(MODELS / config)
    for part, state in (
        ("unet", ours.model.diffusion_model.state_dict()),
        ("controlnet", ours.control_model.state_dict()),
        ("vae", ours.first_stage_model.state_dict()),
    ):
        theirs = names.COMPONENTS[part].to_diffusers(state)
        assert names.detect_component(theirs) == part
        back = names.COMPONENTS[part].from_diffusers(theirs)
        assert list(shapes(back).items()) == list(shapes(state).items())


@pytest.mark.parametrize(
    ("config", "to_diffusers", "layers"),
    [
        ("cldm_v15.yaml", names.COMPONENTS["text_encoder"].to_diffusers, 12),
        ("cldm_v21.yaml", names.OPEN_CLIP.to_diffusers, 23),
    ],
)
def test_published_text_encoders_become_transformers_own(config, to_diffusers, layers):
    transformers = pytest.importorskip("transformers")
    params = read_config(MODELS / config).model.params
    text = form.part_config("text_encoder", params)
    assert text["num_hidden_layers"] == layers
    with torch.device("meta"):
        theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)).state_dict()
    state = to_diffusers(create_meta_model(MODELS / config).cond_stage_model.state_dict())
    # transformers dropped the level text_model. in 5.6; published files have it
    bare = {name.removeprefix("text_model."): shape for name, shape in shapes(state).items()}
    assert bare == {name.removeprefix("text_model."): shape for name, shape in shapes(theirs).items()}
    assert all(name.startswith("text_model.") for name in state)


def test_renaming_follows_the_published_examples():
    published = {
        "time_embed.2.bias": "time_embedding.linear_2.bias",
        "input_blocks.0.0.weight": "conv_in.weight",
        "input_blocks.2.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
        "input_blocks.3.1.transformer_blocks.0.attn1.to_q.weight":
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        "middle_block.2.emb_layers.1.bias": "mid_block.resnets.1.time_emb_proj.bias",
        "input_hint_block.0.weight": "controlnet_cond_embedding.conv_in.weight",
        "input_hint_block.12.bias": "controlnet_cond_embedding.blocks.5.bias",
        "input_hint_block.14.bias": "controlnet_cond_embedding.conv_out.bias",
        "zero_convs.3.0.weight": "controlnet_down_blocks.3.weight",
        "middle_block_out.0.bias": "controlnet_mid_block.bias",
    }  # fmt: skip
    state = {name: torch.full((1,), float(index)) for index, name in enumerate(published)}
    assert list(names.COMPONENTS["controlnet"].to_diffusers(state)) == list(published.values())


def test_settings_that_diffusers_must_not_guess_are_written():
    v15, v21 = (dict(read_config(MODELS / f"cldm_{name}.yaml").model.params) for name in ("v15", "v21"))
    one = form.part_config("controlnet", v15 | {"global_average_pooling": True})
    two = form.part_config("controlnet", v21)
    assert (one["cross_attention_dim"], two["cross_attention_dim"]) == (768, 1024)
    assert (one["attention_head_dim"], two["attention_head_dim"]) == (8, [5, 10, 20, 20])
    assert (one["use_linear_projection"], two["use_linear_projection"]) == (False, True)
    assert (one["upcast_attention"], two["upcast_attention"]) == (False, True)
    assert (one["global_pool_conditions"], two["global_pool_conditions"]) == (True, False)
    assert one["block_out_channels"] == [320, 640, 1280, 1280]
    assert one["conditioning_embedding_out_channels"] == [16, 32, 96, 256]


def test_the_schedule_is_that_of_the_yaml():
    one, two = (
        form.part_config("scheduler", read_config(MODELS / f"cldm_{name}.yaml").model.params) for name in V21
    )
    assert (one["prediction_type"], two["prediction_type"]) == ("epsilon", "v_prediction")
    scheduler = diffusers.DDIMScheduler.from_config(one)
    ours = create_meta_model(MODELS / "cldm_v21.yaml").alphas_cumprod
    # diffusers counts in float32 what we count in float64
    torch.testing.assert_close(scheduler.alphas_cumprod, ours, rtol=1e-4, atol=0)


def test_every_part_of_a_pipeline_has_settings():
    for name in ("cldm_v15.yaml", "cldm_v21.yaml"):
        params = read_config(MODELS / name).model.params
        for part in (*names.COMPONENTS, "scheduler"):
            assert json.dumps(form.part_config(part, params))


def test_an_autoencoder_without_norms_is_refused():
    with pytest.raises(ValueError, match="num_groups=0: diffusers has no autoencoder"):
        config("vae", {"ddconfig": {"num_groups": 0}})


def test_a_text_encoder_that_diffusers_cannot_stand_for_is_refused():
    stage = {"target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder", "params": {"layer": "last"}}
    with pytest.raises(ValueError, match="layer='last': diffusers' form"):
        form.part_config("text_encoder", {"cond_stage_config": stage})
    with pytest.raises(ValueError, match="FrozenT5 has no form in diffusers: FrozenCLIPEmbedder, "):
        form.part_config("text_encoder", {"cond_stage_config": {"target": "x.FrozenT5"}})
    stage["params"] = {"arch": "ViT-Q"}
    with pytest.raises(ValueError, match="arch='ViT-Q' is no model"):
        form.part_config("text_encoder", {"cond_stage_config": stage})
