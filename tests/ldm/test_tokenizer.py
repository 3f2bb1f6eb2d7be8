"""Laws of the CLIP tokenizer: the published ids for any text, in both dialects."""

import copy
import json
import logging
import pickle
import subprocess
import sys

import ftfy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.modules.encoders import tokenizer as module
from ldm.modules.encoders.tokenizer import (
    OPEN_CLIP,
    OPENAI,
    folder_tokenizer,
    shipped_merges,
    shipped_tokenizer,
    vocabulary_of,
)

BOS, EOS, LENGTH = 49_406, 49_407, 77
TEXTS = {
    "empty": "",
    "blank": " \t\n ",
    "plain": "a photo of a cat",
    "spaces": "  two\n\nlines\tand   tabs ",
    "capitals": "A Photo Of NASA",
    "contractions": "don't it's we've I'd they'll CAN'T",
    "numbers": "in 1984, 3.14159 and 12345678",
    "punctuation": "wait... what?! (yes) -- [no]; {ok} #1 @home 50% $9 ~ ^^ :-)",
    "accents": "café naïve Ångström cafe\u0301",
    "korean": "빨간 원과 파란 배경",
    "emoji": "🐱 👩‍👩‍👧 ✨🔥",
    "mojibake": "cafÃ© schÃ¶n",
    "full width": "ＡＢＣ，１２３",
    "ligatures": "\ufb01re \u2018quoted\u2019 \u201ctext\u201d",
    "entities": "cats &amp; dogs &lt;3",
    "long": "an extremely detailed painting of a very small house " * 20,
}


def cleaned_as_published(text):
    return " ".join(ftfy.fix_text(text).split()).lower()


@pytest.fixture(scope="module")
def open_clip_tokenizer():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@pytest.fixture(scope="module")
def openai_oracle():
    """open_clip's independent byte-pair code behind the cleaning of the published ViT-L/14 tokenizer."""
    from open_clip.tokenizer import SimpleTokenizer

    oracle = SimpleTokenizer()
    oracle.clean_fn = cleaned_as_published
    return oracle


def test_published_ids_of_a_known_sentence_come_out():
    ids = shipped_tokenizer()("a photo of a cat")
    assert ids.tolist() == [[BOS, 320, 1125, 539, 320, 2368] + [EOS] * (LENGTH - 6)]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_open_clip_dialect_gives_open_clips_own_ids(text, open_clip_tokenizer):
    assert torch.equal(shipped_tokenizer(OPEN_CLIP)(text), open_clip_tokenizer([text]))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_openai_dialect_gives_the_same_words_padded_with_the_end_token(text, openai_oracle):
    expected = openai_oracle([text])
    expected[expected == 0] = EOS  # id 0 is "!", which no text of ours spells alone
    assert torch.equal(shipped_tokenizer()(text), expected)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_openai_dialect_agrees_with_transformers_on_clean_text(text):
    from transformers import CLIPTokenizer

    merges = shipped_merges()
    theirs = CLIPTokenizer(vocab=vocabulary_of(merges, OPENAI), merges=merges)
    clean = cleaned_as_published(text)  # theirs knows no ftfy
    ids = theirs(
        clean, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    ).input_ids
    assert torch.equal(shipped_tokenizer()(text), ids)


@settings(deadline=None)  # the first example pays for building the tokenizer
@given(st.text(max_size=60))
def test_any_text_has_the_ids_of_open_clip(text):
    from open_clip.tokenizer import _tokenizer as oracle

    assert shipped_tokenizer(OPEN_CLIP).tokenize(text) == oracle.encode(text)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_keeps_its_ids_when_decoded_and_tokenized_again(text):
    tokenizer = shipped_tokenizer()
    ids = tokenizer.tokenize(text)
    framed = tokenizer.frame(ids, len(ids) + 5)
    assert framed == [BOS, *ids, EOS, EOS, EOS, EOS]
    words = tokenizer.decode(ids)
    # the second pass can clean more ("&amp;amp;" needs two), never what is already clean
    if cleaned_as_published(words) == words:
        assert tokenizer.decode(tokenizer.tokenize(words)) == words


def test_only_open_clip_undoes_html_entities_beside_an_angle_bracket():
    openai, open_clip, text = shipped_tokenizer(), shipped_tokenizer(OPEN_CLIP), "a < b &amp; c"
    assert openai.decode(openai.tokenize(text)) == "a < b & amp ; c"
    assert open_clip.decode(open_clip.tokenize(text)) == "a < b & c"


def test_special_tokens_in_a_text_are_themselves():
    ids = shipped_tokenizer().tokenize("a<|endoftext|>b <|startoftext|>")
    assert ids == [320, EOS, 321, BOS]


def test_contractions_fold_case_as_the_published_slow_tokenizer_does(openai_oracle):
    long_s = "the cat'\u017f hat"  # transformers' fast tokenizer knows lower-case contractions only
    assert shipped_tokenizer().tokenize(long_s) == openai_oracle.encode(long_s)


def test_a_special_token_does_not_keep_entities_from_being_undone():
    tokenizer = shipped_tokenizer()
    assert tokenizer.tokenize("a &amp; b<|endoftext|>") == [*tokenizer.tokenize("a & b"), EOS]


def test_a_long_text_is_cut_to_75_tokens_and_the_warning_names_the_rest(caplog):
    words = ["cat"] * 75 + ["purple", "elephant"]
    with caplog.at_level(logging.WARNING):
        ids = shipped_tokenizer()(" ".join(words))
    assert ids.tolist() == [[BOS] + [2368] * 75 + [EOS]]
    assert "longer than 75 tokens" in caplog.text
    assert "'purple elephant'" in caplog.text


def test_a_text_that_just_fits_is_not_warned_about(caplog):
    shipped_tokenizer()("cat " * 75)
    assert not caplog.records


def test_a_copy_and_a_pickle_tokenize_alike():
    tokenizer, text = shipped_tokenizer(), TEXTS["punctuation"]
    expected = tokenizer.tokenize(text)
    assert copy.deepcopy(tokenizer).tokenize(text) == expected
    assert pickle.loads(pickle.dumps(tokenizer)).tokenize(text) == expected


def test_tokenizing_imports_neither_open_clip_nor_transformers():
    code = (
        "import sys; from ldm.modules.encoders.tokenizer import shipped_tokenizer as t; t()('a cat');"
        "raise SystemExit('open_clip' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json"])
def test_a_folder_brings_its_own_tokenizer_and_padding(tmp_path, form):
    from transformers import CLIPTokenizer

    merges = shipped_merges()
    vocabulary = vocabulary_of(merges, OPENAI)
    if form == "vocab.json":
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (tmp_path / "merges.txt").write_text("\n".join(lines), "utf-8")
        (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "!"}}', "utf-8")
    else:
        CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token="!").save_pretrained(tmp_path)
    ids = folder_tokenizer(tmp_path)("a cat")
    assert ids.tolist() == [[BOS, 320, 2368, EOS] + [0] * (LENGTH - 4)]


def test_a_folder_without_tokenizer_files_gets_the_shipped_one(tmp_path):
    assert folder_tokenizer(tmp_path) is shipped_tokenizer()


def test_a_missing_merges_file_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install open_clip_torch"):
        shipped_merges.__wrapped__()


def test_a_prompt_that_is_no_string_is_refused():
    with pytest.raises(TypeError, match="a prompt is a int: give a string"):
        shipped_tokenizer()([7])
