"""Laws of the text encoders: the numbers of transformers and open_clip under the published names."""

import json
from pathlib import Path

import pytest
import torch

from ldm.modules.encoders.modules import FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL_OPEN = {"width": 32, "heads": 4, "layers": 3, "embed_dim": 32}
PROMPTS = ["a photo of a cat", "", "빨간 원, 파란 배경!", "cat " * 75]
TOLERANCE = 1e-4  # relative, in fp32: what the project promises against the reference libraries
CLIP, OPEN = "transformer.text_model.", "model."


def small_clip(seed=0, **kwargs):
    torch.manual_seed(seed)
    return randomize(FrozenCLIPEmbedder(config=SMALL, **kwargs))


def small_open_clip(seed=0, **kwargs):
    torch.manual_seed(seed)
    return randomize(FrozenOpenCLIPEmbedder(config=SMALL_OPEN, **kwargs))


SMALL_ENCODERS = pytest.mark.parametrize("build", [small_clip, small_open_clip], ids=["clip", "open_clip"])


def randomize(module):
    """LayerNorms and biases get random values too, so that swapping or skipping one shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def relative_error(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def reference_clip(embedder, config):
    from transformers import CLIPTextConfig, CLIPTextModel

    theirs = CLIPTextModel(CLIPTextConfig(**config)).eval()
    ours = {k.removeprefix(CLIP): v for k, v in embedder.state_dict().items()}
    ours.pop("embeddings.position_ids")
    level = "text_model." if hasattr(theirs, "text_model") else ""
    theirs.load_state_dict({level + k: v for k, v in ours.items()}, strict=True)
    return theirs


def reference_open_clip(embedder, settings):
    import open_clip

    text = {k: v for k, v in settings.items() if k != "embed_dim"}
    vision = {"layers": 1, "width": 64, "patch_size": 32, "image_size": 32}
    theirs = open_clip.CLIP(settings["embed_dim"], vision, text).eval()
    ours = {k.removeprefix(OPEN): v for k, v in embedder.state_dict().items()}
    report = theirs.load_state_dict(ours, strict=False)
    assert not report.unexpected_keys
    assert all(key.startswith("visual.") for key in report.missing_keys)
    return theirs


def golden_entries(version):
    lines = (GOLDEN / f"golden_keys_{version}.tsv").read_text("utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines if line.startswith("cond_stage_model.")]


@pytest.mark.parametrize(
    ("version", "build"), [("v15", FrozenCLIPEmbedder), ("v21", FrozenOpenCLIPEmbedder)], ids=["v15", "v21"]
)
def test_keys_and_shapes_are_the_published_ones_in_order(version, build):
    with torch.device("meta"):
        state = build().state_dict()
    entries = [(f"cond_stage_model.{k}", "x".join(map(str, v.shape))) for k, v in state.items()]
    assert entries == golden_entries(version)


@torch.no_grad()
def test_clip_context_equals_transformers():
    embedder = small_clip()
    ids = embedder.tokenizer(PROMPTS)
    expected = reference_clip(embedder, SMALL)(input_ids=ids).last_hidden_state
    assert relative_error(embedder.encode(PROMPTS), expected) < TOLERANCE


@torch.no_grad()
def test_pooled_layer_is_the_first_end_token():
    embedder = small_clip(layer="pooled")
    ids = embedder.tokenizer(PROMPTS)
    expected = reference_clip(embedder, SMALL)(input_ids=ids).pooler_output[:, None]
    assert relative_error(embedder(PROMPTS), expected) < TOLERANCE


@torch.no_grad()
def test_clip_skip_2_is_the_last_but_one_layer_normalised():
    embedder, hidden = small_clip(), small_clip(layer="hidden", layer_idx=-2)
    theirs = reference_clip(embedder, SMALL)
    states = theirs(input_ids=embedder.tokenizer(PROMPTS), output_hidden_states=True).hidden_states
    expected = getattr(theirs, "text_model", theirs).final_layer_norm(states[-2])
    assert relative_error(hidden(PROMPTS), expected) < TOLERANCE
    assert torch.equal(embedder.encode(PROMPTS, clip_skip=2), hidden(PROMPTS))
    assert torch.equal(embedder.encode(PROMPTS, clip_skip=1), embedder(PROMPTS))


@torch.no_grad()
def test_open_clip_last_layer_pools_to_open_clips_text_features():
    embedder = small_open_clip(layer="last")
    ids = embedder.tokenizer(PROMPTS)
    expected = reference_open_clip(embedder, SMALL_OPEN).encode_text(ids)
    at_end = embedder(PROMPTS)[torch.arange(len(ids)), ids.argmax(dim=-1)]
    assert relative_error(at_end @ embedder.model.text_projection, expected) < TOLERANCE


@torch.no_grad()
def test_open_clip_penultimate_equals_open_clips_own_intermediate():
    embedder = small_open_clip()
    theirs = reference_open_clip(embedder, SMALL_OPEN)
    output = theirs.forward_intermediates(
        text=embedder.tokenizer(PROMPTS),
        text_indices=[1],
        normalize_intermediates=True,
        intermediates_only=True,
    )
    assert relative_error(embedder(PROMPTS), output["text_intermediates"][0]) < TOLERANCE
    assert torch.equal(embedder.encode(PROMPTS, clip_skip=2), embedder(PROMPTS))


@torch.no_grad()
def test_the_penultimate_encoder_never_runs_its_last_block():
    embedder = small_open_clip()
    before = embedder(PROMPTS)
    for parameter in embedder.model.transformer.resblocks[-1].parameters():
        parameter.fill_(float("nan"))
    assert torch.equal(embedder(PROMPTS), before)


@SMALL_ENCODERS
@torch.no_grad()
def test_a_token_sees_only_the_tokens_before_it(build):
    embedder = build()
    short, long = embedder.encode("red circle"), embedder.encode("red circle with a blue background")
    assert torch.allclose(short[:, :3], long[:, :3], atol=1e-6)  # BOS and two words
    assert not torch.allclose(short[:, 3:], long[:, 3:], atol=1e-2)


@SMALL_ENCODERS
def test_an_encoder_built_on_meta_works_once_weights_are_assigned(build):
    source = build()
    with torch.device("meta"):
        target = type(source)(config=SMALL if build is small_clip else SMALL_OPEN)
    assert all(buffer.device.type == "cpu" for buffer in target.buffers())
    target.load_state_dict(source.state_dict(), strict=True, assign=True)
    assert torch.equal(target(PROMPTS), source(PROMPTS))
    assert not any(parameter.requires_grad for parameter in target.parameters())


@SMALL_ENCODERS
def test_a_frozen_encoder_asks_for_no_gradient_and_a_thawed_one_does(build):
    assert not build()(PROMPTS).requires_grad
    thawed = build(freeze=False)
    assert thawed.training
    thawed(["a red circle"]).square().sum().backward()
    unused = ("text_projection", "logit_scale", "resblocks.2.")  # the last block of the penultimate encoder
    for name, parameter in thawed.named_parameters():
        assert (parameter.grad is None) == (build is small_open_clip and any(u in name for u in unused)), name


@SMALL_ENCODERS
def test_half_precision_and_a_string_for_a_prompt_work(build):
    embedder = build()
    expected = embedder("a cat")
    half = embedder.bfloat16()("a cat")
    assert half.dtype == torch.bfloat16
    assert relative_error(half.float(), expected) < 0.05  # eight bits of mantissa, three layers


def test_a_local_folder_gives_its_own_dimensions(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": SMALL}), "utf-8")
    assert FrozenCLIPEmbedder(str(tmp_path))("a cat").shape == (1, 77, 32)


@pytest.mark.parametrize(
    ("build", "kwargs", "message"),
    [
        (
            FrozenCLIPEmbedder,
            {"version": "some/hub-name"},
            "'some/hub-name': use openai/clip-vit-large-patch14, or",
        ),
        (small_clip, {"layer": "first"}, "'first': use one of last, pooled, hidden"),
        (small_clip, {"layer": "hidden"}, r"layer_idx=None: layer='hidden' needs one in \[-4, 3\]"),
        (small_clip, {"max_length": 78}, "max_length=78: this text encoder takes 3 to 77 tokens"),
        (small_open_clip, {"max_length": 2}, "max_length=2: this text encoder takes 3 to 77 tokens"),
        (small_open_clip, {"layer": "hidden"}, "'hidden': use one of last, penultimate"),
        (small_open_clip, {"arch": "ViT-X"}, "'ViT-X' is no model of the installed open_clip"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(build, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


@SMALL_ENCODERS
@pytest.mark.parametrize("clip_skip", [0, 4])
def test_a_clip_skip_beyond_the_layers_is_refused(build, clip_skip):
    with pytest.raises(ValueError, match=f"clip_skip={clip_skip}: this text encoder has 3 layers"):
        build().encode("a cat", clip_skip=clip_skip)


@pytest.mark.slow
@torch.no_grad()
def test_full_size_vit_l_equals_transformers():
    embedder = FrozenCLIPEmbedder()
    config = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    }
    expected = reference_clip(embedder, config)(input_ids=embedder.tokenizer(PROMPTS)).last_hidden_state
    error = relative_error(embedder(PROMPTS), expected)
    print(f"ViT-L/14 relative error {error:.2e}")  # noqa: T201 - the figure that the report quotes
    assert error < TOLERANCE


@pytest.mark.slow
@torch.no_grad()
def test_full_size_vit_h_penultimate_equals_open_clip():
    embedder = FrozenOpenCLIPEmbedder()
    theirs = reference_open_clip(embedder, {"width": 1024, "heads": 16, "layers": 24, "embed_dim": 1024})
    output = theirs.forward_intermediates(
        text=embedder.tokenizer(PROMPTS),
        text_indices=[22],
        normalize_intermediates=True,
        intermediates_only=True,
    )
    error = relative_error(embedder(PROMPTS), output["text_intermediates"][0])
    print(f"ViT-H/14 relative error {error:.2e}")  # noqa: T201 - the figure that the report quotes
    assert error < TOLERANCE
