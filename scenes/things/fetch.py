"""Takes the art from npm, once: packages of icons with free licences, checked against their sums.

Scenes are made of Noto Emoji (Apache-2.0, Google), Fluent Emoji Flat (MIT, Microsoft) and Twemoji (CC-BY-4.0,
Twitter and contributors). The recognizer sees more ways to draw a thing: Noto v1 (Apache-2.0), EmojiOne
(CC-BY-4.0), FxEmoji (Apache-2.0), Fluent Emoji High Contrast (MIT), IconPark (Apache-2.0), Lucide (ISC),
Material Design Icons (Apache-2.0), Phosphor (MIT) and Tabler (MIT). All are JSON of SVG bodies by Iconify;
only making training data needs them.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from common.atomic import atomic_write

SCOPE = "@iconify-json"
PACKAGES = {  # version and SHA-256
    "noto": ("1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "fluent-emoji-flat": ("1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
    "twemoji": ("1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    "noto-v1": ("1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    "emojione": ("1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
    "fxemoji": ("1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
    "fluent-emoji-high-contrast": (
        "1.2.6",
        "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
    ),
    "icon-park-outline": ("1.2.4", "e4c29776086e46ed7d113b7d44798a36ca74df6dcfb949da142db34714ab7c8a"),
    "lucide": ("1.2.137", "e74db8c3a55fff55bc82de21268c4bced9f65ff10aacc0d5f3a395b0e93243c3"),
    "mdi": ("1.2.3", "ddd817a7213f91de51147943915c0cda8c8b818a53c92b5c068cfa9883c6d7ac"),
    "ph": ("1.2.2", "e3a582a047d9829fc7e8842c660d8065e598d1b68bb58cb68e75a1f1e5a614cc"),
    "tabler": ("1.2.41", "3bf99af156d28d05568aff524a35ed1ba238df640a7835a5e02e1f8e439685f6"),
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
    missing = [style for style in PACKAGES if newest or not icons_file(folder, style).exists()]
    if missing and shutil.which("npm") is None:
        packages = ", ".join(f"{SCOPE}/{style}@{PACKAGES[style][0]}" for style in missing)
        files = ", ".join(str(icons_file(folder, style)) for style in missing)
        raise FileNotFoundError(
            f"there is no npm to fetch {packages} with: install Node.js, "
            f"or put the icons.json of each into {files}"
        )
    for style in missing:
        with tempfile.TemporaryDirectory() as place:
            package = _pack(style, Path(place), newest)
            if not newest:
                check_sum(package, PACKAGES[style][1])
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
    version = "latest" if newest else PACKAGES[style][0]
    command = ["npm", "pack", "--silent", f"{SCOPE}/{style}@{version}"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise OSError(f"npm did not bring {SCOPE}/{style}@{version}: {reason}")
    return place / done.stdout.strip().splitlines()[-1]
