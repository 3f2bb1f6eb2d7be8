"""CLIP's byte-pair tokenizer, from the merges file that open_clip ships: text -> ids, without any download.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 2.4.
Two published dialects differ in text cleaning, in how the special tokens are spelled and in padding: that of
openai/clip-vit-large-patch14 (Stable Diffusion 1.x, pads with 49407) and open_clip's (2.x, pads with 0).
Only open_clip undoes HTML entities in a text that holds a "<": the ids of "a < b &amp; c" differ.
"""

import gzip
import html
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor

log = logging.getLogger(__name__)

MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"  # inside the open_clip package
MERGES_USED = 48_894  # CLIP's 49,152 tokens of plan, less one symbol per byte and the two special tokens
MAX_TOKENS = 77  # CLIP's context length, BOS and EOS included
WORD_END = "</w>"
# A character for each byte: its Latin-1 one if visible, else one from U+0100 on.
BYTE_SYMBOLS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SPACE = "\u0120"  # the symbol of the blank

Merges = list[tuple[str, str]]
Vocabulary = dict[str, int]


def _split_at_specials(text: str) -> str:
    """Clean as openai/clip-vit-large-patch14 does: special tokens stay, the text between them is repaired."""
    import ftfy
    import regex

    # each part by itself: the brackets of a special token would tell ftfy that the whole text is HTML
    parts = regex.split(r"(<\|startoftext\|>|<\|endoftext\|>)", text)
    return " ".join(word.lower() for part in parts for word in ftfy.fix_text(part).split())


def _unescape_twice(text: str) -> str:
    """Clean as open_clip does: repaired, HTML entities undone twice, single spaces, lower case."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


@dataclass(frozen=True)
class Dialect:
    """How one published tokenizer spells its special tokens, cleans its text, and the id it pads with."""

    bos: str
    eos: str
    pad_id: int
    clean: Callable[[str], str]


OPENAI = Dialect("<|startoftext|>", "<|endoftext|>", 49_407, _split_at_specials)
OPEN_CLIP = Dialect("<start_of_text>", "<end_of_text>", 0, _unescape_twice)


class ClipTokenizer:
    """Text -> CLIP token ids in one dialect; `merges` in order of their rank, `vocabulary` symbol -> id."""

    def __init__(self, merges: Merges, vocabulary: Vocabulary, dialect: Dialect = OPENAI) -> None:
        import regex

        self.dialect, self.pad_id = dialect, dialect.pad_id
        self.bos_id, self.eos_id = vocabulary[dialect.bos], vocabulary[dialect.eos]
        self._specials = {dialect.bos: self.bos_id, dialect.eos: self.eos_id}
        self._bpe = BPE(vocabulary, merges, end_of_word_suffix=WORD_END, unk_token=dialect.eos)
        self._symbols = {i: symbol for symbol, i in vocabulary.items()}  # for messages: what was cut
        specials = "|".join(regex.escape(special) for special in self._specials)
        # python's `regex`, as published: its idea of a letter and its case folding decide where words end
        words = r"|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
        self._words = regex.compile(specials + words, regex.IGNORECASE)

    def tokenize(self, text: str) -> list[int]:
        """All ids of `text`, however many, without BOS, EOS or padding."""
        if not isinstance(text, str):
            raise TypeError(f"a prompt is a {type(text).__name__}: give a string")
        ids: list[int] = []
        for word in self._words.findall(self.dialect.clean(text)):
            if word in self._specials:
                ids.append(self._specials[word])
            else:
                ((symbols, _),) = BYTE_SYMBOLS.pre_tokenize_str(word)
                ids.extend(token.id for token in self._bpe.tokenize(symbols))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The clean lower-case text of `ids`, a space after each word; half a character becomes U+FFFD."""
        symbols = (self._symbols[i] for i in ids)
        words = (f"{s.removesuffix(WORD_END)}{SPACE}" if s.endswith(WORD_END) else s for s in symbols)
        return decoders.ByteLevel().decode(["".join(words)]).strip()

    def frame(self, ids: list[int], length: int = MAX_TOKENS) -> list[int]:
        """BOS + ids + EOS, padded to `length`; `ids` must fit."""
        assert len(ids) <= length - 2, "cut the ids to length - 2 before framing them"
        framed = [self.bos_id, *ids, self.eos_id]
        return framed + [self.pad_id] * (length - len(framed))

    def __call__(self, texts: str | list[str], max_length: int = MAX_TOKENS) -> Tensor:
        """Ids [b, max_length] int64 on the CPU; what does not fit is cut, and a warning names it."""
        rows = []
        for text in [texts] if isinstance(texts, str) else texts:
            ids = self.tokenize(text)
            kept, cut = ids[: max_length - 2], ids[max_length - 2 :]
            if cut:
                log.warning("the prompt is longer than %d tokens, cut: %r", max_length - 2, self.decode(cut))
            rows.append(self.frame(kept, max_length))  # [max_length]
        return torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(len(rows), max_length)


def vocabulary_of(merges: Merges, dialect: Dialect) -> Vocabulary:
    """CLIP's order of ids: bytes by their symbol's code point, these as word ends, merges, BOS, EOS."""
    single = sorted(BYTE_SYMBOLS.alphabet())
    joined = (first + second for first, second in merges)
    symbols = [*single, *(s + WORD_END for s in single), *joined, dialect.bos, dialect.eos]
    return {symbol: i for i, symbol in enumerate(symbols)}


@lru_cache(maxsize=1)
def shipped_merges() -> Merges:
    """The merges inside the installed open_clip_torch, read without importing it (that costs seconds)."""
    spec = find_spec("open_clip")
    path = Path(spec.submodule_search_locations[0], MERGES_FILE) if spec else None
    if path is None or not path.is_file():
        cure = "it ships inside open_clip_torch, pip install open_clip_torch"
        raise FileNotFoundError(f"{MERGES_FILE} not found: {cure}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : MERGES_USED + 1]  # line 0 is the file's version
    return [(first, second) for first, second in (line.split() for line in lines)]


@lru_cache(maxsize=2)
def shipped_tokenizer(dialect: Dialect = OPENAI) -> ClipTokenizer:
    """The tokenizer of CLIP's published vocabulary in `dialect`, built once per process."""
    merges = shipped_merges()
    return ClipTokenizer(merges, vocabulary_of(merges, dialect), dialect)


def folder_tokenizer(folder: Path) -> ClipTokenizer:
    """The tokenizer that transformers saved in `folder`; the shipped one if it holds no tokenizer files."""
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary, merges = BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    elif saved := _read_json(folder / "tokenizer.json"):
        vocabulary, lines = saved["model"]["vocab"], saved["model"]["merges"]
        # "a b" or ["a", "b"], depending on the version that wrote it
        merges = [tuple(line.split() if isinstance(line, str) else line) for line in lines]
    else:
        return shipped_tokenizer()
    names = "special_tokens_map.json", "tokenizer_config.json"
    pads = (_read_json(folder / name).get("pad_token") for name in names)
    pad = next(filter(None, pads), OPENAI.eos)
    pad = pad if isinstance(pad, str) else pad["content"]
    return ClipTokenizer(merges, vocabulary, replace(OPENAI, pad_id=vocabulary[pad]))


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
