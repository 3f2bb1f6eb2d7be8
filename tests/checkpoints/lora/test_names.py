"""Each name that a tool may write leads to one target, at full size too."""

from pathlib import Path

import pytest

from checkpoints.lora.names import lora_targets, split_name

GOLDEN = Path(__file__).parents[2] / "golden"
BLOCK = "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0"


def shapes(version):
    rows = (line.split("\t") for line in (GOLDEN / f"golden_keys_{version}.tsv").read_text().splitlines())
    return {name: tuple(map(int, shape.split("x"))) if shape else () for name, shape in rows}


@pytest.mark.parametrize("version", ["v15", "v21"])
def test_every_matrix_of_the_u_net_and_the_text_encoder_that_runs_can_be_changed(version):
    model = shapes(version)
    found = {target.key for target in lora_targets(model).values()}
    matrices = {name for name, shape in model.items() if len(shape) > 1 and name.endswith("weight")}
    unet = {name for name in matrices if name.startswith("model.")}
    text = {name for name in matrices if name.startswith("cond_stage_model.")}
    assert unet <= found
    assert not {name for name in found if name.startswith(("control_model", "first_stage_model"))}
    last = {name for name in text if "resblocks.23." in name}  # of open_clip: stored, never run
    assert {name for name in text - last if "embedding" not in name} <= found
    assert not last & found


@pytest.mark.parametrize(
    ("version", "name", "key", "first"),
    [
        ("v15", f"{BLOCK}_ff_net_0_proj", "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight", 0),
        ("v15", "lora_unet_down_blocks_2_downsamplers_0_conv", "input_blocks.9.0.op.weight", 0),
        ("v15", "lora_unet_up_blocks_0_upsamplers_0_conv", "output_blocks.2.1.conv.weight", 0),
        ("v15", "lora_unet_time_embedding_linear_1", "time_embed.0.weight", 0),
        ("v15", "lora_unet_down_blocks_0_resnets_0_time_emb_proj", "input_blocks.1.0.emb_layers.1.weight", 0),
        ("v21", "lora_te_text_model_encoder_layers_22_self_attn_k_proj", "22.attn.in_proj_weight", 1024),
        ("v21", "text_encoder.text_model.encoder.layers.3.mlp.fc2", "resblocks.3.mlp.c_proj.weight", 0),
        ("v15", "text_encoder.text_model.encoder.layers.3.self_attn.to_out", "self_attn.out_proj.weight", 0),
    ],
)  # fmt: skip
def test_published_names_lead_to_published_keys(version, name, key, first):
    target = lora_targets(shapes(version))[name]
    assert target.key.endswith(key)
    assert target.first == first


@pytest.mark.parametrize("version", ["v15", "v21"])
def test_no_name_stands_for_two_places(version):
    model = shapes(version)
    whole = lora_targets(model)
    alone = [
        lora_targets({name: shape for name, shape in model.items() if name.startswith(part)})
        for part in ("model.diffusion_model.", "cond_stage_model.")
    ]
    assert sum(map(len, alone)) == len(whole)
    names = {}
    for name, target in whole.items():
        names.setdefault(target, []).append(name)
    assert min(map(len, names.values())) > 3, "a name that was taken already would be missing here"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (f"{BLOCK}_attn1_to_q.lora_down.weight", (f"{BLOCK}_attn1_to_q", "down")),
        (f"{BLOCK}_attn1_to_q.lora_mid.weight", (f"{BLOCK}_attn1_to_q", "mid")),
        (f"{BLOCK}_attn1_to_q.alpha", (f"{BLOCK}_attn1_to_q", "alpha")),
        ("unet.a.attn1.processor.to_q_lora.up.weight", ("unet.a.attn1.to_q", "up")),
        ("a.to_q.lora.up.weight", ("a.to_q", "up")),
        ("a.fc1.lora_linear_layer.down.weight", ("a.fc1", "down")),
        ("a.to_q.lora_A.weight", ("a.to_q", "down")),
        ("a.to_q.lora_B.default.weight", ("a.to_q", "up")),
        ("a.to_q.lora_B.bias", None),
        ("a.to_q.weight", None),
        ("alpha", None),
    ],
)
def test_a_name_is_what_is_changed_and_which_half_it_is(name, parts):
    assert split_name(name) == parts
