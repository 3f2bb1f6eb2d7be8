"""A folder of the hub on disk: what a network is built from and its weights, and nothing else.

Such a repository holds the same weights in several forms. We take its small texts (configuration,
preprocessor, tokenizer) and one form: safetensors, or the pickled one where there is no other. The folder
grows under another name and appears once all of it is right.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from tools.download.catalogue import HUB, PublishedFile
from tools.download.fetch import DownloadError, fetch, sentences

WEIGHTS = "model.safetensors", "pytorch_model.bin"  # the first of them that is there
TEXTS = {".json", ".txt"}
MAX_TEXT = 20_000_000  # bytes: the largest vocabulary has 4 million


def fetch_folder(published: PublishedFile, target: Path, mirror: str) -> tuple[bool, str]:
    """Put the folder to `target`: whether anything had to be fetched, and what it was checked by.

    Errors as `tools.download.fetch.fetch`.
    """
    with sentences(published, mirror):
        wanted = _contents(published, mirror)
    growing = target if target.is_dir() else part_of(target)
    results = [fetch(one, growing / one.name, mirror) for one in wanted]
    if growing != target:
        growing.rename(target)
    return any(fetched for fetched, _ in results), results[-1][1]  # of the weights, which come last


def part_of(target: Path) -> Path:
    """Where the folder grows that is to become `target`."""
    return target.with_name(f"{target.name}.part")


def _contents(published: PublishedFile, mirror: str) -> list[PublishedFile]:
    """The files to take, each with the size and, where it is large, the sha256 that the hub states."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=mirror, token=None if mirror == HUB else False)
    listed = [one for one in api.list_repo_tree(published.repository) if hasattr(one, "size")]
    known = {one.path: one for one in listed}
    weights = next((name for name in WEIGHTS if name in known), None)
    if weights is None or "config.json" not in known:
        raise DownloadError(f"{published.repository} holds no weights that can be read here")
    texts = [name for name, one in known.items() if _is_text(name) and one.size <= MAX_TEXT]
    return [_described(published, known[name]) for name in (*texts, weights)]


def _is_text(name: str) -> bool:
    return PurePosixPath(name).suffix in TEXTS and not name.endswith(".index.json")


def _described(published: PublishedFile, listed: object) -> PublishedFile:
    sha256 = listed.lfs.sha256 if listed.lfs else None
    return PublishedFile(published.repository, listed.path, None, listed.size, sha256)
