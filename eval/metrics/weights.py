"""Networks that metrics look through: files under their published names, checked before they are read.

Nothing is fetched here. What is absent is said with the command that fetches it; what is there but is another
file is a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.hashing import sha256_of

FOLDER = Path(__file__).parents[2] / "models"
METRIC_WEIGHTS = Path("models/metrics")
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FOLDER_FILES = ("*.safetensors", "pytorch_model.bin", "*.json")  # of a transformers folder
# A name may end in the first eight digits of its file's checksum, as torchvision's and Inception's do.
DIGITS = re.compile(r"-([0-9a-f]{8})\.pth$")


@dataclass(frozen=True)
class Network:
    """names: of the file or folder, any of them; the first is what the download command calls it.

    shipped: lies among the models of this repository. sha256: None where only the name's digits are known.
    """

    names: tuple[str, ...]
    sha256: str | None = None
    shipped: bool = False

    def find(self, folder: Path) -> Path | None:
        """Where it lies, None where it does not."""
        places = ((FOLDER if self.shipped else folder) / name for name in self.names)
        return next((place for place in places if place.exists()), None)


def identity(network: Network, place: Path) -> str:
    """sha256 of the network at `place`; ValueError in one sentence where it is not the published one."""
    if place.is_dir():
        files = sorted(file for pattern in FOLDER_FILES for file in place.glob(pattern))
        if not (place / "config.json").is_file() or all(file.suffix == ".json" for file in files):
            raise ValueError(
                f"{place} is no folder of transformers: it needs config.json and weights{_cure(network)}"
            )
        import hashlib

        return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()
    found, digits = sha256_of(place), DIGITS.search(place.name)
    expected = network.sha256 or (digits.group(1) if digits else "")
    if not found.startswith(expected):
        raise ValueError(f"{place} has the sha256 {found}, {expected} is the published one{_cure(network)}")
    return found


def absent(networks: Iterable[Network], folder: Path) -> str | None:
    """One line that names what `folder` lacks and how to get it; None where all is there."""
    names = [network.names[0] for network in networks if network.find(folder) is None]
    if not names:
        return None
    return f"not in {folder}: {', '.join(names)}; python tool_download_models.py get {' '.join(names)}"


def _cure(network: Network) -> str:
    return f": delete it, then python tool_download_models.py get {network.names[0]}"


NETWORKS = {
    "inception": Network(
        ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
        INCEPTION_SHA256,
    ),
    "alexnet": Network(("alexnet-owt-7be5be79.pth",)),
    "clip": Network(("clip-vit-base-patch16",)),
    "clip_large": Network(("clip-vit-large-patch14-336",)),
    "dinov2": Network(("dinov2-large",)),
    "tiny": Network(("tiny.safetensors",), shipped=True),
}
