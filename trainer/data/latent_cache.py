"""Latents and text embeddings of a training set, computed once and kept on disk in shards.

A shard holds the rows of a fixed range; it appears under its name only when it is complete, so that a cache
that was interrupted goes on where it stopped. `cache.json` says what the cache was made of: one of another
model, resolution or data set is refused. Means and deviations are kept, not draws: a run on a cache sees
every image under as many draws as a run without.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from checkpoints.files.write import write_weights
from cldm.cldm import ControlLDM
from common.atomic import check_space
from trainer.data.dataset import ControlDataset, SampleStream
from trainer.losses import latent_moments

SHARD = 256  # rows: about 35 MB of Stable Diffusion in half precision
EMPTY = "empty.safetensors"  # the text that --proportion-empty-prompts puts in
BATCH = 4  # images encoded at once: memory of the autoencoder grows with them
SETTINGS_FILE = "cache.json"  # says what the shards were made of
OPEN_SHARDS = 8  # mapped at once; a stream in random order asks for any of them


@dataclass(frozen=True)
class CachedStream(Dataset):
    """A `SampleStream` without images: mean and std [c, h, w] and text [n, d] lie in `folder`."""

    stream: SampleStream  # says which row comes, and its hint and text
    folder: Path

    def __getitem__(self, number: int) -> dict[str, Any]:
        sample, row = self.stream[number], self.stream.row(number)
        shard = _opened(_shard(self.folder, row))
        cached = {name: shard.get_slice(name)[row % SHARD] for name in ("mean", "std", "text")}
        if sample["txt"] == "":
            cached["text"] = _opened(self.folder / EMPTY).get_tensor("text")
        return sample | cached


def build_cache(
    model: ControlLDM, data: ControlDataset, folder: Path, dtype: torch.dtype, weights: Sequence[Path]
) -> None:
    """Compute what is missing of the cache in `folder`.

    Raises ValueError for images that change from sample to sample, or a folder with another cache; OSError
    when there is no room for it.
    """
    seen = data.transform
    if seen.random_crop or seen.flip or any(len(row.texts) > 1 for row in data.rows):
        words = "leave out --random-crop and --flip, and give each row one text"
        raise ValueError(f"--cache-latents keeps one latent and one text of each pair: {words}")
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # of several processes one computes and the others wait for it
        _claim(folder, _fingerprint(data, dtype, weights))
        if not (folder / EMPTY).exists():
            with torch.no_grad():
                empty = model.get_unconditional_conditioning(1)[0].to(dtype).cpu()
            write_weights(folder / EMPTY, {"text": empty})
        _fill(model, data, folder, dtype)


def _fingerprint(data: ControlDataset, dtype: torch.dtype, weights: Sequence[Path]) -> dict[str, Any]:
    """What a cache depends on."""
    rows = [f"{row.image.resolve()}\t{row.image.stat().st_size}\t{row.texts[0]}" for row in data.rows]
    digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()  # sizes, not contents: these are read once
    files = [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in weights]
    return {"rows": digest, "weights": files, "resolution": data.side, "dtype": str(dtype)}


def _shard(folder: Path, row: int) -> Path:
    return folder / f"shard-{row // SHARD:06}.safetensors"


def _fill(model: ControlLDM, data: ControlDataset, folder: Path, dtype: torch.dtype) -> None:
    from tqdm import tqdm

    shards = [range(first, min(first + SHARD, len(data))) for first in range(0, len(data), SHARD)]
    missing = [rows for rows in shards if not _shard(folder, rows.start).exists()]
    bar = tqdm(total=sum(map(len, missing)), desc="latents", unit="pair", disable=not missing)
    for number, rows in enumerate(missing):
        pieces: dict[str, list[Tensor]] = {"mean": [], "std": [], "text": []}
        for start in range(rows.start, rows.stop, BATCH):
            samples = [data[row] for row in range(start, min(start + BATCH, rows.stop))]
            batch = {
                model.first_stage_key: torch.from_numpy(np.stack([one["jpg"] for one in samples])),
                model.cond_stage_key: [one["txt"] for one in samples],
            }
            for name, value in zip(pieces, latent_moments(model, batch), strict=True):
                pieces[name].append(value.to(dtype).cpu())
            bar.update(len(samples))
        shard = {name: torch.cat(values) for name, values in pieces.items()}
        if number == 0:  # one shard tells how large all are
            size = sum(value.nbytes for value in shard.values()) * len(missing)
            check_space(_shard(folder, rows.start), size)
        write_weights(_shard(folder, rows.start), shard)
    bar.close()


def _claim(folder: Path, wanted: dict[str, Any]) -> None:
    settings = folder / SETTINGS_FILE
    if settings.exists():
        found = json.loads(settings.read_text("utf-8"))
        if other := [name for name in wanted if found.get(name) != wanted[name]]:
            words = f"latents of other {', '.join(other)}"
            raise ValueError(f"{folder} caches {words}: delete it, or name another folder")
        return
    settings.write_text(json.dumps(wanted, indent=2), "utf-8")


@lru_cache(OPEN_SHARDS)
def _opened(path: Path) -> Any:
    return safe_open(path, framework="pt")
