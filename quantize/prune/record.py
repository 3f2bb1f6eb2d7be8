"""What a pruned file says of itself: how it was made, how wide its layers are left, where zeros are to stay.

The entry `prune` of a safetensors file's metadata, as JSON. How wide layers are follows from the tensors too;
the entry makes a newer format, and a file of another model, something that can be said in a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
METADATA_KEY = "prune"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Record:
    """How a pruned file came about, and what it must keep."""

    config: str  # name of the yaml
    steps: tuple[Mapping[str, Any], ...] = ()  # what was done, in order
    counts: Mapping[str, int] = field(default_factory=dict)  # units left, of groups that lost some
    masked: Mapping[str, str] = field(
        default_factory=dict
    )  # pattern of zeros by layer: "2:4", or "magnitude"
    sources: Mapping[str, str] = field(default_factory=dict)  # sha256 of the files it was made of

    def then(self, step: Mapping[str, Any], **changes: Any) -> Record:
        """The record after one more step."""
        return replace(self, steps=(*self.steps, step), **changes)

    def to_json(self) -> str:
        """For the file's metadata; the same record gives the same text."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps({"version": FORMAT_VERSION, **fields}, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, path: str | Path) -> Record:
        """What `to_json` wrote into the file `path`; ValueError in one sentence for anything else."""
        try:
            found = json.loads(text)
            version = found.pop("version")
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise ValueError(
                    f"{path} is pruned in format {version}, this program reads {FORMAT_VERSION}: update it"
                )
            steps = tuple(map(dict, found.pop("steps")))
            return cls(steps=steps, **{name: found[name] for name in cls.__dataclass_fields__.keys() & found})
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} says nonsense about its pruning, make it again: {reason}") from None
