"""Foreign formats are known by the names that only they have; our own files are never taken for one."""

from pathlib import Path

import pytest

from checkpoints.names.diffusers import COMPONENTS
from checkpoints.names.recognize import foreign_format, is_lora

GOLDEN = sorted((Path(__file__).parents[2] / "golden").glob("golden_keys_*.tsv"))
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["lora_controlnet", "input_blocks.1.0.in_layers.2.up"], "a Control-LoRA"),
        (["lllite_unet_middle_block_1_transformer_blocks_0_attn1_to_q.d"], "a ControlNet-LLLite"),
        (["control_model.enc_zero_convs_out.0.weight"], "a ControlNet-XS"),
        (["control_model.input_blocks.0.0.weight", "dec_zero_convs_in.3.bias"], "a ControlNet-XS"),
        (["control_to_base_for_conv_in.weight", "down_blocks.0.resnets.0.norm1.weight"], "a ControlNet-XS"),
        (["controlnet_cond_embedding.conv_in.weight", "task_embedding"], "a ControlNet-Union"),
        (["difference", "control_model.input_blocks.0.0.weight"], "the difference of a control branch"),
        (["body.0.in_conv.weight", "body.0.body.0.block1.weight"], "a T2I-Adapter"),
        (["conv_in.weight", "body.0.block1.weight"], "a T2I-Adapter"),
        (["adapter.body.0.resnets.0.block1.weight"], "a T2I-Adapter"),
        (["style_embedding", "transformer_layes.0.attn.in_proj_weight"], "a style T2I-Adapter"),
        (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "an IP-Adapter"),
        (["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"], "an AnimateDiff"),
        (["conditioner.embedders.0.transformer.text_model.x", "model.diffusion_model.out.0.bias"], "an SDXL"),
        (["label_emb.0.0.weight", "input_blocks.0.0.weight"], "an SDXL"),
        (["add_embedding.linear_1.weight", "down_blocks.0.resnets.0.norm1.weight"], "an SDXL"),
        (["noise_augmentor.time_embed.timesteps", "label_emb.0.0.weight"], "a Stable unCLIP"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "a diffusion transformer"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "a diffusion transformer"),
        (["transformer_blocks.0.attn.to_q.weight", "pos_embed.proj.weight"], "a diffusion transformer"),
        (["emb_params"], "a textual-inversion"),
        (["string_to_token.*", "string_to_param.*", "name"], "a textual-inversion"),
        (["clip_l", "clip_g"], "a textual-inversion"),
        (["<cat-toy>"], "a textual-inversion"),
        (["768", "layer_structure"], "a hypernetwork"),
        (["body.0.rdb1.conv1.weight", "conv_first.weight"], "an upscaler"),
    ],
)  # fmt: skip
def test_each_foreign_format_is_known(names, what):
    assert foreign_format(names).what.startswith(what)
    assert foreign_format(names).instead


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (f"{KOHYA}.hada_w1_a", "a LoHa"),
        (f"{KOHYA}.lokr_w2", "a LoKr"),
        (f"{KOHYA}.dora_scale", "a DoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_magnitude_vector.weight", "a DoRA"),
        (f"{KOHYA}.oft_blocks", "an OFT"),
        (f"{KOHYA}.on_input", "an (IA)^3"),
        (f"{KOHYA}.diff_b", "a full difference"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "a LoRA for SDXL"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "a LoRA for SDXL"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "a LoRA for a diffusion transformer"),
        ("transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight", "a LoRA for a diffusion"),
        ("transformer.transformer_blocks.0.attn.to_k.lora.down.weight", "a LoRA for a diffusion transformer"),
        ("bundle_emb.cat.string_to_param.*", "a LoRA with embeddings"),
    ],
)
def test_each_relative_of_lora_is_known(name, what):
    assert foreign_format([f"{KOHYA}.lora_down.weight", name]).what.startswith(what)


@pytest.mark.parametrize(
    "name",
    [
        f"{KOHYA}.lora_down.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
        "unet.mid_block.attentions.0.proj_in.lora_A.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.up.weight",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight",
    ],
)
def test_plain_loras_are_known_and_not_unusual(name):
    assert is_lora([name])
    assert foreign_format([name, name.replace("down", "up"), f"{KOHYA}.alpha"]) is None
    assert foreign_format([name]) is None


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_our_own_names_have_no_marker_of_a_foreign_format(golden):
    names = [line.split("\t")[0] for line in golden.read_text().splitlines()]
    bare = [name.removeprefix("control_model.").removeprefix("model.diffusion_model.") for name in names]
    for known in (names, bare):
        assert foreign_format(known) is None
        assert not is_lora(known)


def test_diffusers_names_have_no_marker_of_a_foreign_format():
    lines = GOLDEN[0].read_text().splitlines()
    prefix = "model.diffusion_model."
    unet = {line.split("\t")[0].removeprefix(prefix): None for line in lines if line.startswith(prefix)}
    assert foreign_format(COMPONENTS["unet"].to_diffusers(unet)) is None
