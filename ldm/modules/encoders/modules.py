"""The two text encoders of Stable Diffusion: prompts -> the context that cross-attention reads.

Radford et al. 2021 (CLIP). Stable Diffusion 1.x reads the last layer of OpenAI's ViT-L/14 (77 x 768), 2.x the
last but one of open_clip's ViT-H/14 (77 x 1024). The networks are those of transformers and open_clip; state
dicts keep the published names, which the libraries have changed since: loading goes through `published_keys`.
Neither class ever reaches for the network. Buffers are built on the CPU even under `torch.device("meta")`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.encoders.published_keys import State, published_clip_keys, published_open_clip_keys
from ldm.modules.encoders.tokenizer import (
    MAX_TOKENS,
    OPEN_CLIP,
    ClipTokenizer,
    folder_tokenizer,
    shipped_tokenizer,
)

VIT_L_TEXT = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768,
}  # fmt: skip
KNOWN_CLIP = {"openai/clip-vit-large-patch14": VIT_L_TEXT}  # published name -> its dimensions
CLIP_LAYERS = ("last", "pooled", "hidden")
OPEN_CLIP_SKIP = {"last": 1, "penultimate": 2}  # layer -> how many from the end it is


class AbstractEncoder(nn.Module):
    """What both text encoders share; a subclass brings `tokenizer`, `max_length` and `encode_ids`."""

    tokenizer: ClipTokenizer
    max_length: int

    def encode_ids(self, ids: Tensor, clip_skip: int | None = None) -> Tensor:
        """Token ids [b, n] -> context [b, n, d]; `clip_skip` 1 is the last layer, 2 the last but one."""
        raise NotImplementedError

    def encode(self, text: str | list[str], clip_skip: int | None = None) -> Tensor:
        """Prompts -> context [b, max_length, d]; tokens that do not fit are cut, and a warning names them."""
        return self.encode_ids(self.tokenizer(text, self.max_length), clip_skip)

    def forward(self, text: str | list[str]) -> Tensor:
        """The same as `encode(text)`."""
        return self.encode(text)

    def freeze(self) -> None:
        """Evaluation mode, and no parameter asks for a gradient."""
        self.eval().requires_grad_(False)

    def _adapt_keys_with(self, adapter: Callable[[State, str], State]) -> None:
        def adapt(_: nn.Module, state: State, prefix: str, *rest: object) -> None:
            adapted = adapter(state, prefix)
            state.clear()  # this is load_state_dict's own copy, never the caller's dict
            state.update(adapted)

        self.register_load_state_dict_pre_hook(adapt)


class FrozenCLIPEmbedder(AbstractEncoder):
    """CLIP's text transformer as transformers builds it, under the names of Stable Diffusion 1.x.

    version: a published name, or a local folder with config.json and perhaps tokenizer files of its own.
    layer: "last"; "pooled" (the EOS position alone, [b, 1, d]); "hidden", the layer `layer_idx` of
    transformers' `hidden_states`, then the final LayerNorm ("clip skip 2" is layer_idx=-2).
    config: overrides entries of transformers' CLIPTextConfig, for small models.
    device: taken because published scripts pass it; encoding happens where the parameters are.
    """

    def __init__(  # noqa: PLR0913 - published signature
        self, version: str = "openai/clip-vit-large-patch14", device: str | torch.device = "cpu",
        max_length: int = MAX_TOKENS, freeze: bool = True, layer: str = "last", layer_idx: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        settings = {**clip_settings(version), **(config or {})}
        self.transformer = _ClipText(settings)
        self.tokenizer = folder_tokenizer(Path(version)) if Path(version).is_dir() else shipped_tokenizer()
        depth = self.transformer.depth
        if layer not in CLIP_LAYERS:
            raise ValueError(f"layer={layer!r}: use one of {', '.join(CLIP_LAYERS)}")
        if layer == "hidden" and (layer_idx is None or not -depth - 1 <= layer_idx <= depth):
            raise ValueError(f"layer_idx={layer_idx}: layer='hidden' needs one in [{-depth - 1}, {depth}]")
        self.max_length = _checked_length(max_length, self.transformer.positions)
        self.layer, self.layer_idx = layer, layer_idx
        self._adapt_keys_with(published_clip_keys)
        if freeze:
            self.freeze()

    def encode_ids(self, ids: Tensor, clip_skip: int | None = None) -> Tensor:
        """Token ids [b, n] -> context [b, n, d], or [b, 1, d] for "pooled"; `clip_skip` overrides `layer`."""
        depth = self.transformer.depth
        if clip_skip is None and self.layer == "pooled":
            return self.transformer(ids).pooler_output[:, None, :]  # [b, 1, d]
        index = self.layer_idx if self.layer == "hidden" else -1  # of `hidden_states`, embeddings first
        if clip_skip is not None:
            index = -_checked_skip(clip_skip, depth)
        if index in (-1, depth):
            return self.transformer(ids).last_hidden_state  # [b, n, d], normalised already
        hidden = self.transformer(ids, output_hidden_states=True).hidden_states[index]
        return self.transformer.text_model.final_layer_norm(hidden)


class _ClipText(nn.Module):
    """transformers' text model below the published `text_model.` level, which transformers 5.6 dropped."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        super().__init__()
        built = CLIPTextModel(CLIPTextConfig(**settings))
        self.text_model = getattr(built, "text_model", built)
        self.depth, self.positions = built.config.num_hidden_layers, built.config.max_position_embeddings
        # transformers keeps this buffer out of the state dict; published files have it
        position_ids = torch.arange(self.positions, device="cpu")[None]  # [1, n]
        self.text_model.embeddings.register_buffer("position_ids", position_ids, persistent=True)

    def forward(self, ids: Tensor, output_hidden_states: bool = False) -> Any:
        device = self.text_model.final_layer_norm.weight.device
        options = {"output_hidden_states": output_hidden_states, "return_dict": True}
        return self.text_model(input_ids=ids.to(device), **options)


class FrozenOpenCLIPEmbedder(AbstractEncoder):
    """The text half of an open_clip model under the names of Stable Diffusion 2.x; nothing is downloaded.

    version: the published tag of pretrained weights, accepted and ignored: weights come from the checkpoint.
    layer: "last", or "penultimate": the last block is stored but never run; `ln_final` follows in both.
    config: overrides entries of open_clip's text_cfg (width, heads, layers, ...) and embed_dim.
    device: taken because published scripts pass it; encoding happens where the parameters are.
    """

    def __init__(  # noqa: PLR0913 - published signature
        self, arch: str = "ViT-H-14", version: str | None = None, device: str | torch.device = "cpu",
        max_length: int = MAX_TOKENS, freeze: bool = True, layer: str = "penultimate",
        config: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if layer not in OPEN_CLIP_SKIP:
            raise ValueError(f"layer={layer!r}: use one of {', '.join(OPEN_CLIP_SKIP)}")
        self.model = _open_clip_text(arch, config or {})
        self.tokenizer = shipped_tokenizer(OPEN_CLIP)
        self.max_length = _checked_length(max_length, self.model.context_length)
        self.layer = layer
        self._adapt_keys_with(published_open_clip_keys)
        if freeze:
            self.freeze()

    def encode_ids(self, ids: Tensor, clip_skip: int | None = None) -> Tensor:
        """Token ids [b, n] -> context [b, n, d]; `clip_skip` overrides `layer`."""
        model, blocks = self.model, self.model.transformer.resblocks
        skip = OPEN_CLIP_SKIP[self.layer] if clip_skip is None else _checked_skip(clip_skip, len(blocks))
        n = ids.shape[1]
        x = model.token_embedding(ids.to(model.positional_embedding.device)) + model.positional_embedding[:n]
        # open_clip ran its blocks as [n, b, d] before it knew batch_first
        batch_first = getattr(model.transformer, "batch_first", False)
        x = x if batch_first else x.transpose(0, 1)
        for block in blocks[: len(blocks) - skip + 1]:
            x = block(x, attn_mask=model.attn_mask[:n, :n])
        return model.ln_final(x if batch_first else x.transpose(0, 1))  # [b, n, d]


def clip_settings(version: str) -> dict[str, Any]:
    """Dimensions of the CLIP of a published name or in a local folder; ValueError for anything else."""
    if version in KNOWN_CLIP:
        return KNOWN_CLIP[version]
    path = Path(version, "config.json")
    if not path.is_file():
        known = ", ".join(KNOWN_CLIP)
        raise ValueError(f"text encoder {version!r}: use {known}, or a local folder with config.json")
    settings = json.loads(path.read_text("utf-8"))
    return settings.get("text_config") or settings  # a whole CLIP keeps its text half one level down


def _open_clip_text(arch: str, overrides: Mapping[str, Any]) -> nn.Module:
    import open_clip

    if arch not in open_clip.list_models():
        raise ValueError(f"arch={arch!r} is no model of the installed open_clip: SD 2.x has ViT-H-14")
    settings = open_clip.get_model_config(arch)
    text = {**settings["text_cfg"], **overrides}
    # open_clip builds both towers: that of images is made as small as it can be, then dropped
    vision = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 32}
    width, quick_gelu = text.pop("embed_dim", settings["embed_dim"]), settings.get("quick_gelu", False)
    model = open_clip.CLIP(width, vision, text, quick_gelu=quick_gelu)
    del model.visual
    n = model.context_length
    model.register_buffer("attn_mask", torch.full((n, n), -math.inf, device="cpu").triu(1), persistent=False)
    return model


def _checked_length(max_length: int, positions: int) -> int:
    if not 2 < max_length <= positions:
        raise ValueError(f"max_length={max_length}: this text encoder takes 3 to {positions} tokens")
    return max_length


def _checked_skip(clip_skip: int, depth: int) -> int:
    if not 1 <= clip_skip <= depth:
        raise ValueError(f"clip_skip={clip_skip}: this text encoder has {depth} layers, 1 is the last one")
    return clip_skip
