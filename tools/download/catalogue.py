"""The published weights: where each file lies, how long it is, and its checksum where one is known.

`catalogue.tsv` has a line for each. Sizes and checksums come from Git LFS pointers and from other programs'
catalogues; they are empty where no source gives one: such a file is checked by what the server says of it,
see `tools.download.fetch`. `gigabytes` is the size as the hub's pages show it, in units of 1e9 bytes: it
tells a web page from weights where no size is known. The short names of base models fetch safetensors; the
same weights as .ckpt are called by their file name.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

HUB = "https://huggingface.co"
OTHER_HUB = "https://hf-mirror.com"  # the same repositories and paths, run by others
GIGABYTE = 10**9
EVERY_CONTROL = "all"


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights: its repository on the hub and its path in there.

    size: bytes. config: the yaml it fits, relative to the project's root.
    """

    repository: str
    path: str
    gigabytes: float
    size: int | None = None
    sha256: str | None = None
    config: str = "models/cldm_v15.yaml"

    @property
    def name(self) -> str:
        """The name it has on disk."""
        return PurePosixPath(self.path).name

    @property
    def max_bytes(self) -> int:
        """Its size, or what it can be at most."""
        return self.size or round((self.gigabytes + 0.005) * GIGABYTE)

    def can_have(self, size: int) -> bool:
        """Whether a file of `size` bytes can be this one."""
        return size == self.size if self.size else round(size / GIGABYTE, 2) == self.gigabytes


def find_files(names: Iterable[str]) -> dict[str, PublishedFile]:
    """The files called so, each once: by short name, by file name with or without suffix, or `all`.

    ValueError lists the known names.
    """
    aliases = {
        alias: name
        for name, one in reversed(PUBLISHED.items())  # the first of two with one stem wins
        for alias in (name, one.name, PurePosixPath(one.name).stem)
    }
    found: dict[str, PublishedFile] = {}
    for name in names:
        if name == EVERY_CONTROL:
            found |= CONTROLS_11
        elif name in aliases:
            found[aliases[name]] = PUBLISHED[aliases[name]]
        else:
            known = ", ".join((EVERY_CONTROL, *PUBLISHED))
            raise ValueError(f"no published file is called {name!r}: choose from {known}")
    return found


def _read_sections() -> dict[str, dict[str, PublishedFile]]:
    """Heading -> short name -> file, in the order of `catalogue.tsv`."""
    sections: dict[str, dict[str, PublishedFile]] = {}
    with Path(__file__).with_suffix(".tsv").open(encoding="utf-8") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            size = int(line["bytes"]) if line["bytes"] else None
            place = line["repository"], line["path"], float(line["gigabytes"])
            one = PublishedFile(*place, size, line["sha256"] or None, line["config"])
            sections.setdefault(line["section"], {})[line["name"]] = one
    return sections


SECTIONS = _read_sections()
CONTROLS_11, CONTROLS_10, BASES = SECTIONS.values()
PUBLISHED = {**CONTROLS_11, **CONTROLS_10, **BASES}
