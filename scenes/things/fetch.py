"""Takes the art from npm, once: three packages of icons with free licences, checked against their sums.

Noto Emoji (Apache-2.0) by Google, Fluent Emoji Flat (MIT) by Microsoft, Twemoji (CC-BY-4.0) by Twitter and
its contributors, each as JSON of SVG bodies by Iconify. Only making training data needs them.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from common.atomic import atomic_write
from scenes.things.words import STYLES

SCOPE = "@iconify-json"
VERSIONS = {"noto": "1.2.9", "fluent-emoji-flat": "1.2.6", "twemoji": "1.2.5"}
SHA256 = {
    "noto": "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "fluent-emoji-flat": "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "twemoji": "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
}
MEMBER = "package/icons.json"


def icons_file(folder: Path, style: str) -> Path:
    """Where the icons of a style lie in a folder of art."""
    return folder / f"{style}.json"


def fetch(folder: Path, newest: bool = False) -> list[Path]:
    """Put the icons of every style into `folder`; returns the files that were missing.

    newest: the latest packages instead of those we know, whose sums nobody has checked. FileNotFoundError
    without npm, OSError for a package that npm does not bring, ValueError for one of another sum.
    """
    missing = [style for style in STYLES if newest or not icons_file(folder, style).exists()]
    if missing and shutil.which("npm") is None:
        packages = ", ".join(f"{SCOPE}/{style}@{VERSIONS[style]}" for style in missing)
        files = ", ".join(str(icons_file(folder, style)) for style in missing)
        raise FileNotFoundError(
            f"there is no npm to fetch {packages} with: install Node.js, "
            f"or put the icons.json of each into {files}"
        )
    for style in missing:
        with tempfile.TemporaryDirectory() as place:
            package = _pack(style, Path(place), newest)
            if not newest:
                check_sum(package, SHA256[style])
            with tarfile.open(package) as tar, atomic_write(icons_file(folder, style)) as partial:
                member = tar.extractfile(MEMBER)
                assert member is not None, f"{MEMBER} is a file in every package of {SCOPE}"
                partial.write_bytes(member.read())
    return [icons_file(folder, style) for style in missing]


def check_sum(package: Path, expected: str) -> None:
    """ValueError unless the file has this SHA-256."""
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(
            f"{package.name} has the SHA-256 {found}, not {expected}: it is not the package that we know; "
            "--newest takes it all the same"
        )


def _pack(style: str, place: Path, newest: bool) -> Path:
    version = "latest" if newest else VERSIONS[style]
    command = ["npm", "pack", "--silent", f"{SCOPE}/{style}@{version}"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise OSError(f"npm did not bring {SCOPE}/{style}@{version}: {reason}")
    return place / done.stdout.strip().splitlines()[-1]
