"""Laws of the key adapters: every published naming of a text encoder loads strictly, nothing is skipped."""

import pytest
import torch

from ldm.modules.encoders.modules import FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder
from ldm.modules.encoders.published_keys import published_clip_keys, published_open_clip_keys

CLIP, OPEN = "transformer.text_model.", "model."


def small_clip(seed):
    torch.manual_seed(seed)
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return FrozenCLIPEmbedder(config=config)


def small_open_clip(seed):
    torch.manual_seed(seed)
    return FrozenOpenCLIPEmbedder(config={"width": 32, "heads": 4, "layers": 2, "embed_dim": 32})


def newer(state):
    return {k.replace("text_model.", ""): v for k, v in state.items() if not k.endswith("position_ids")}


NAMINGS = {
    "published": dict,
    "without position_ids": lambda s: {k: v for k, v in s.items() if not k.endswith("position_ids")},
    "float position_ids": lambda s: {
        k: v.float() - 0.01 if k.endswith("position_ids") else v for k, v in s.items()
    },
    "transformers 5.6": newer,
    "text encoder file": lambda s: {k.removeprefix("transformer."): v for k, v in s.items()},
    "text encoder file of transformers 5.6": lambda s: {k.removeprefix(CLIP): v for k, v in newer(s).items()},
    "whole CLIP file": lambda s: {
        **{k.removeprefix("transformer."): v for k, v in s.items()},
        **dict.fromkeys(
            ("vision_model.x", "visual_projection.weight", "text_projection.weight"), torch.zeros(1)
        ),
        "logit_scale": torch.zeros(()),
    },
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_published_naming_loads_strictly(naming, assign):
    source, target = small_clip(seed=0), small_clip(seed=1)
    given = NAMINGS[naming](source.state_dict())
    names = list(given)
    target.load_state_dict(given, strict=True, assign=assign)
    assert list(given) == names  # the caller's dict is left alone
    loaded, expected = target.state_dict(), source.state_dict()
    assert list(loaded) == list(expected)
    assert all(torch.equal(loaded[k], expected[k]) and loaded[k].dtype == expected[k].dtype for k in expected)


OPEN_NAMINGS = {
    "published": dict,
    "without logit_scale": lambda s: {k: v for k, v in s.items() if k != "model.logit_scale"},
    "open_clip's own": lambda s: {
        **{k.removeprefix(OPEN): v for k, v in s.items()},
        "visual.proj": torch.zeros(1),
        "attn_mask": torch.zeros(1),
    },
}


@pytest.mark.parametrize("naming", OPEN_NAMINGS)
def test_every_open_clip_naming_loads_strictly(naming):
    source, target = small_open_clip(seed=0), small_open_clip(seed=1)
    target.load_state_dict(OPEN_NAMINGS[naming](source.state_dict()), strict=True)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items())


@pytest.mark.parametrize("adapt", [published_clip_keys, published_open_clip_keys])
def test_key_adapters_leave_other_parts_of_a_checkpoint_alone(adapt):
    state = {"a.embeddings.x": torch.zeros(1), "a.visual.x": torch.zeros(1), "a.logit_scale": torch.zeros(())}
    assert adapt(state, "b.") == state


@pytest.mark.parametrize("build", [small_clip, small_open_clip], ids=["clip", "open_clip"])
def test_a_nested_encoder_loads_below_its_prefix_and_still_reports_strangers(build):
    parent = torch.nn.ModuleDict({"cond_stage_model": build(seed=1)})
    state = {f"cond_stage_model.{k}": v for k, v in build(seed=0).state_dict().items()}
    parent.load_state_dict(state, strict=True)
    assert torch.equal(parent["cond_stage_model"](["a cat"]), build(seed=0)(["a cat"]))
    with pytest.raises(RuntimeError, match="stranger"):
        parent.load_state_dict({**state, "cond_stage_model.stranger.weight": torch.zeros(1)}, strict=True)
    state.pop(next(k for k in state if k.endswith("token_embedding.weight")))
    with pytest.raises(RuntimeError, match=r"token_embedding\.weight"):
        parent.load_state_dict(state, strict=True)


def as_open_clip(state):
    """CLIP's weights from transformers' names to open_clip's: an independent program for the same network."""
    renamed = {
        "token_embedding.weight": state[CLIP + "embeddings.token_embedding.weight"],
        "positional_embedding": state[CLIP + "embeddings.position_embedding.weight"],
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names["self_attn.out_proj"] = "attn.out_proj"
    for kind in ("weight", "bias"):
        renamed[f"ln_final.{kind}"] = state[f"{CLIP}final_layer_norm.{kind}"]
        for i in range(2):
            layer, block = f"{CLIP}encoder.layers.{i}.", f"transformer.resblocks.{i}."
            renamed.update(
                {f"{block}{new}.{kind}": state[f"{layer}{old}.{kind}"] for old, new in names.items()}
            )
            qkv = [state[f"{layer}self_attn.{p}_proj.{kind}"] for p in "qkv"]
            renamed[f"{block}attn.in_proj_{kind}"] = torch.cat(qkv)
    return renamed


@torch.no_grad()
def test_clip_weights_give_the_same_context_in_open_clips_program():
    clip = small_clip(seed=0)
    for parameter in clip.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))  # else biases are zero and no name matters
    settings = {"width": 32, "heads": 4, "layers": 2, "mlp_ratio": 2.0}
    other = FrozenOpenCLIPEmbedder("ViT-L-14-quickgelu", layer="last", config=settings)
    other.load_state_dict({"text_projection": other.model.text_projection, **as_open_clip(clip.state_dict())})
    ids = clip.tokenizer(["a photo of a cat", "", "빨간 원, 파란 배경!"])
    # two orders of float32 sums over 32 features: about 1e-6
    torch.testing.assert_close(clip.encode_ids(ids), other.encode_ids(ids), rtol=1e-4, atol=1e-5)
