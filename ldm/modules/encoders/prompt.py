"""Weighted and long prompts, in the notation of the Stable Diffusion web UIs: prompts -> context.

`(word)` weighs 1.1, `((word))` 1.21, `[word]` 1/1.1, `(word:1.2)` 1.2. `\\(` is a plain bracket; so is one
without a partner. A weight multiplies the embeddings of its tokens, then the mean of the chunk is restored.
Prompts beyond 75 tokens become up to three chunks, each with a BOS and EOS of its own, side by side.
"""

from __future__ import annotations

import logging
import re
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor

from ldm.modules.encoders.modules import AbstractEncoder

log = logging.getLogger(__name__)

BRACKET_WEIGHT = 1.1  # the web UIs' step of emphasis
MAX_WEIGHT = 100.0  # images fall apart from about 2 on; this only keeps half precision from overflowing
MAX_CHUNKS = 3  # 225 tokens, as ControlNet 1.1's demo of anime line art takes
# a mean below this share of the values' size is the rest of a sum that cancels: dividing by it adds noise
MEAN_FLOOR = 1e-2

PARTNER = {")": "(", "]": "["}
SYMBOL = re.compile(r"\\[()\[\]\\]|.", re.DOTALL)  # an escaped character is one symbol
EXPLICIT_WEIGHT = re.compile(r":\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*$")

Chunk = tuple[list[int], list[float]]  # ids and their weights, at most max_length - 2 of each


def encode_prompts(embedder: AbstractEncoder, prompts: list[str], clip_skip: int | None = None) -> Tensor:
    """Context [b, n * k, d] of weighted prompts, n = `embedder.max_length`, k = chunks of the longest prompt.

    Shorter prompts are filled with empty chunks; text beyond `MAX_CHUNKS` is cut, and a warning names it.
    A prompt without brackets that fits one chunk gives the very bits of `embedder.encode`.
    `clip_skip`: 1 is the last layer, 2 the last but one; None leaves it to the embedder.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ValueError("no prompt to encode: give at least one, an empty string if there is nothing to say")
    if clip_skip is None and getattr(embedder, "layer", None) == "pooled":
        raise ValueError(
            "layer='pooled' has no tokens to weigh: use an embedder with layer 'last' or 'hidden'"
        )
    rows = [_chunks(embedder, prompt) for prompt in prompts]
    contexts = []
    for i in range(max(len(row) for row in rows)):
        chunks = [row[i] if i < len(row) else ([], []) for row in rows]
        framed = [embedder.tokenizer.frame(ids, embedder.max_length) for ids, _ in chunks]
        context = embedder.encode_ids(torch.tensor(framed, device="cpu"), clip_skip)  # [b, n, d]
        contexts.append(torch.stack([_weigh(z, w) for z, (_, w) in zip(context, chunks, strict=True)]))
    return torch.cat(contexts, dim=1)  # [b, n * k, d]


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """(text, weight) runs of `prompt`, without its brackets; neighbours differ in weight.

    A prompt without brackets is one run, to the letter: a backslash means something only where brackets are.
    Raises ValueError for weights beyond `MAX_WEIGHT`.
    """
    if not re.search(r"[()\[\]]", prompt):
        return [(prompt, 1.0)]
    symbols = SYMBOL.findall(prompt)
    opens, closes = _brackets(symbols)
    weights, runs, i = [1.0], [], 0  # weights: of the text so far, then of each open bracket
    while i < len(symbols):
        if i in opens:
            weights.append(weights[-1] * opens[i])
            i += 1
        elif i in closes:
            weights.pop()
            i = closes[i]
        else:
            runs.append((symbols[i][-1], weights[-1]))  # the last character: an escape loses its backslash
            i += 1
    joined = [("".join(c for c, _ in group), weight) for weight, group in groupby(runs, itemgetter(1))]
    for text, weight in joined:
        if not abs(weight) <= MAX_WEIGHT:  # in this form it refuses NaN too
            raise ValueError(
                f"weight {weight:.3g} of {text!r}: use at most {MAX_WEIGHT:g}, 0.5 to 1.5 is usual"
            )
    return joined


def _brackets(symbols: list[str]) -> tuple[dict[int, float], dict[int, int]]:
    """Opening bracket -> its factor, and where the bracket's text ends -> where the text behind it begins."""
    opens, closes, pending = {}, {}, []
    for i, symbol in enumerate(symbols):
        if symbol in PARTNER.values():
            pending.append(i)
        elif symbol in PARTNER and any(symbols[j] == PARTNER[symbol] for j in pending):
            while symbols[start := pending.pop()] != PARTNER[symbol]:
                pass  # the other kind, opened inside and never closed: plain text
            explicit = EXPLICIT_WEIGHT.search("".join(symbols[start + 1 : i])) if symbol == ")" else None
            bracket = BRACKET_WEIGHT if symbol == ")" else 1 / BRACKET_WEIGHT
            opens[start] = float(explicit[1]) if explicit else bracket
            closes[i - len(explicit[0]) if explicit else i] = i + 1
    return opens, closes


def _chunks(embedder: AbstractEncoder, prompt: str) -> list[Chunk]:
    tokenizer, size = embedder.tokenizer, embedder.max_length - 2  # BOS and EOS take two places
    if not isinstance(prompt, str):
        raise TypeError(f"a prompt is a {type(prompt).__name__}: give a string")
    tokens = [(i, weight) for text, weight in parse_weights(prompt) for i in tokenizer.tokenize(text)]
    limit = MAX_CHUNKS * size
    if len(tokens) > limit:
        cut = tokenizer.decode(i for i, _ in tokens[limit:])
        log.warning("the prompt is longer than %d tokens, cut: %r", limit, cut)
    tokens = tokens[:limit]
    starts = range(0, max(len(tokens), 1), size)  # an empty prompt is one empty chunk
    return [([i for i, _ in tokens[s : s + size]], [w for _, w in tokens[s : s + size]]) for s in starts]


def _weigh(z: Tensor, weights: list[float]) -> Tensor:
    """One chunk [n, d] with its tokens (not BOS, EOS and padding) multiplied and its mean as it was."""
    if all(weight == 1 for weight in weights):
        return z  # not a bit changes
    factors = torch.ones(len(z), dtype=torch.float32, device="cpu")
    factors[1 : len(weights) + 1] = torch.tensor(weights, dtype=torch.float32, device="cpu")
    plain = z.float()
    weighted = plain * factors.to(z.device)[:, None]  # [n, d]
    before, after, floor = plain.mean(), weighted.mean(), MEAN_FLOOR * plain.abs().mean()
    stable = (before * after > 0) & (before.abs() > floor) & (after.abs() > floor)
    return (weighted * torch.where(stable, before / after, 1.0)).to(z.dtype)
