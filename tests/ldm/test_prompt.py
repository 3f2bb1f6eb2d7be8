"""Laws of weighted and long prompts."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.modules.encoders.modules import FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder
from ldm.modules.encoders.prompt import encode_prompts, parse_weights
from ldm.modules.encoders.tokenizer import shipped_tokenizer

PLAIN = ["a red circle", "", r"back\slash \\ and : 1.2", "빨간 원, 파란 배경!", "cat " * 75]
FINAL_BIAS = 0.5  # gives the context a mean well away from zero, as trained encoders have


def build_clip():
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    embedder = FrozenCLIPEmbedder(config=config)
    embedder.transformer.text_model.final_layer_norm.bias.data.fill_(FINAL_BIAS)
    return embedder


def build_open_clip():
    embedder = FrozenOpenCLIPEmbedder(config={"width": 32, "heads": 4, "layers": 3, "embed_dim": 32})
    embedder.model.ln_final.bias.data.fill_(FINAL_BIAS)
    return embedder


@pytest.fixture(scope="module", params=[build_clip, build_open_clip], ids=["clip", "open_clip"])
def embedder(request):
    torch.manual_seed(0)
    return request.param()


@pytest.mark.parametrize(
    ("prompt", "runs"),
    [
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("((red))", [("red", 1.21)]),
        ("[red]", [("red", 1 / 1.1)]),
        ("[[red]] (blue)", [("red", 1 / 1.21), (" ", 1), ("blue", 1.1)]),
        ("(red:1.2)", [("red", 1.2)]),
        ("(red: .5 )", [("red", 0.5)]),
        ("(red:-1)", [("red", -1)]),
        ("(a (b:2) c)", [("a ", 1.1), ("b", 2.2), (" c", 1.1)]),
        ("(red:blue)", [("red:blue", 1.1)]),
        ("[red:1.2]", [("red:1.2", 1 / 1.1)]),
        ("([red])", [("red", 1)]),
        ("()", []),
        ("(:1.2)", []),
    ],
)
def test_brackets_weigh_their_text(prompt, runs):
    assert parse_weights(prompt) == [(text, pytest.approx(weight)) for text, weight in runs]


@pytest.mark.parametrize("text", ["(red", "red)", ")red(", "[red", "red]", ":)", "a] b [c", "(red]", "[red)"])
def test_brackets_without_a_partner_are_text(text):
    assert parse_weights(text) == [(text, 1.0)]


def test_a_lonely_bracket_inside_a_pair_is_text():
    assert parse_weights("([red)]") == [("[red", 1.1), ("]", 1.0)]


@pytest.mark.parametrize(
    ("prompt", "runs"),
    [
        (r"\(red\)", [("(red)", 1)]),
        (r"(\(red\))", [("(red)", 1.1)]),
        (r"\[a\] (b)", [("[a] ", 1), ("b", 1.1)]),
        (r"\\(red)", [("\\", 1), ("red", 1.1)]),
        (r"C:\dir (a)", [("C:\\dir ", 1), ("a", 1.1)]),
    ],
)
def test_a_backslash_makes_a_bracket_text(prompt, runs):
    assert parse_weights(prompt) == [(text, pytest.approx(weight)) for text, weight in runs]


PIECES = st.lists(st.sampled_from([*"()[]:\\", "1.2", "cat", " "]), max_size=25).map("".join)


@given(PIECES)
def test_parsing_loses_nothing_but_notation(prompt):
    runs = parse_weights(prompt)
    remaining = iter(prompt)
    assert all(c in remaining for text, _ in runs for c in text)  # a subsequence of the prompt
    assert "".join(text for text, _ in runs).count("cat") == prompt.count("cat")
    assert all(a[1] != b[1] for a, b in zip(runs, runs[1:], strict=False))


@given(st.text(max_size=40))
def test_an_escaped_text_is_that_text(text):
    escaped = "".join("\\" + c if c in "()[]\\" else c for c in text)
    expected = text if any(c in "()[]" for c in text) else escaped
    assert parse_weights(escaped) == [(expected, 1.0)]


@torch.no_grad()
def test_plain_prompts_give_the_bits_of_encode(embedder):
    assert torch.equal(encode_prompts(embedder, PLAIN), embedder.encode(PLAIN))


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["a (red:1.0) circle", "a ([red]) circle", "()a red circle"])
def test_a_weight_of_one_changes_nothing(embedder, prompt):
    assert torch.equal(encode_prompts(embedder, [prompt]), embedder.encode(["a red circle"]))


@torch.no_grad()
def test_a_weight_multiplies_its_tokens_and_the_mean_stays(embedder):
    plain = embedder.encode(["a red circle"])
    weighted = encode_prompts(embedder, ["a (red:1.5) circle"])
    factors = torch.ones(77)
    factors[2] = 1.5  # BOS, a, red
    expected = plain * factors[:, None]
    assert torch.allclose(weighted, expected * (plain.mean() / expected.mean()), rtol=1e-5)
    assert torch.allclose(weighted.mean(), plain.mean(), rtol=1e-4)
    assert not torch.allclose(weighted[:, 2], plain[:, 2], rtol=0.1)


@torch.no_grad()
def test_where_the_mean_is_only_rounding_it_is_not_restored(embedder):
    unbiased = copy.deepcopy(embedder)
    open_clip = isinstance(unbiased, FrozenOpenCLIPEmbedder)
    norm = unbiased.model.ln_final if open_clip else unbiased.transformer.text_model.final_layer_norm
    norm.bias.data.zero_()  # now every token has mean zero
    plain, weighted = unbiased.encode(["a red circle"]), encode_prompts(unbiased, ["a (red:1.5) circle"])
    assert torch.equal(weighted[:, 2], plain[:, 2] * 1.5)
    assert torch.equal(weighted[:, 3:], plain[:, 3:])


@pytest.mark.parametrize(
    ("values", "weight"),
    [([1, -0.999, 0], 0), ([1, 0.999, 0], -1), ([2, 1, 0], -3)],
    ids=["hardly a mean before", "hardly a mean after", "mean of the other sign"],
)
def test_a_mean_that_would_wreck_the_context_is_not_restored(values, weight):
    z = torch.tensor(values, dtype=torch.float32)[None, :, None]  # BOS, one token, EOS
    fixed = SimpleNamespace(tokenizer=shipped_tokenizer(), max_length=3, encode_ids=lambda ids, clip_skip: z)
    context = encode_prompts(fixed, [f"(cat:{weight})"]).flatten()
    assert torch.equal(context, torch.tensor([values[0], values[1] * weight, 0]))


@torch.no_grad()
def test_a_weighted_prompt_does_not_change_its_neighbours(embedder):
    together = encode_prompts(embedder, ["a (red:1.5) circle", "a cat"])
    assert torch.equal(together[1], encode_prompts(embedder, ["a red circle", "a cat"])[1])


@torch.no_grad()
@pytest.mark.parametrize(("words", "chunks"), [(0, 1), (75, 1), (76, 2), (150, 2), (151, 3), (225, 3)])
def test_every_75_tokens_make_a_chunk(embedder, words, chunks):
    assert encode_prompts(embedder, ["cat " * words]).shape == (1, 77 * chunks, 32)


@torch.no_grad()
def test_a_long_prompt_is_its_chunks_side_by_side(embedder):
    first, second = "red " * 75, "a blue circle"
    context = encode_prompts(embedder, [first + second, "short"])
    assert torch.allclose(context[0], torch.cat([*embedder.encode([first, second])]), atol=1e-5)
    assert torch.allclose(context[1], torch.cat([*embedder.encode(["short", ""])]), atol=1e-5)


@torch.no_grad()
def test_the_fourth_chunk_is_cut_and_the_warning_names_it(embedder, caplog):
    with caplog.at_level(logging.WARNING):
        context = encode_prompts(embedder, ["cat " * 225 + "(purple:1.2) elephant"])
    assert context.shape == (1, 231, 32)
    assert "longer than 225 tokens, cut: 'purple elephant'" in caplog.text


@torch.no_grad()
def test_clip_skip_reaches_the_encoder(embedder):
    assert torch.equal(encode_prompts(embedder, PLAIN, clip_skip=2), embedder.encode(PLAIN, clip_skip=2))
    assert not torch.equal(encode_prompts(embedder, PLAIN, 1), encode_prompts(embedder, PLAIN, 2))


@torch.no_grad()
def test_half_precision_stays_half(embedder):
    context = encode_prompts(copy.deepcopy(embedder).bfloat16(), ["a (red:1.5) circle"])
    assert context.dtype == torch.bfloat16


@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=3))
def test_any_prompts_give_a_finite_context_of_whole_chunks(prompts):
    torch.manual_seed(0)
    context = encode_prompts(CLIP_FOR_ANY, prompts)
    assert context.shape == (len(prompts), 77, 32)
    assert context.isfinite().all()


CLIP_FOR_ANY = build_clip()


@pytest.mark.parametrize(
    "prompt", ["(red:101)", "(red:-200)", "(red:" + "9" * 400 + ")", "((a:0):" + "9" * 400 + ")"]
)
def test_absurd_weights_are_refused(prompt):
    with pytest.raises(ValueError, match="use at most 100, 0.5 to 1.5 is usual"):
        parse_weights(prompt)


def test_no_prompts_at_all_are_refused(embedder):
    with pytest.raises(ValueError, match="no prompt to encode"):
        encode_prompts(embedder, [])


def test_a_prompt_that_is_no_string_is_refused(embedder):
    with pytest.raises(TypeError, match="a prompt is a NoneType"):
        encode_prompts(embedder, ["a cat", None])


def test_pooled_embedders_are_refused():
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    with pytest.raises(ValueError, match="layer='pooled' has no tokens to weigh"):
        encode_prompts(FrozenCLIPEmbedder(config=config, layer="pooled"), ["a cat"])
