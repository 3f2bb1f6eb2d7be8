"""Published weights by name: `list` shows them, `get` fetches them, resumes, and checks what came.

    python tool_download_models.py list
    python tool_download_models.py get canny depth
    python tool_download_models.py get sd15 --mirror https://hf-mirror.com

`get all` fetches the 14 control files of ControlNet 1.1. A file appears only when it is right; what was
stopped goes on with the same command. Proxies are those of the environment; HF_ENDPOINT is the default of
--mirror, and HF_TOKEN is shown to https://huggingface.co alone. Exit codes: 0; 1 with a sentence for each
file that could not be had; 130 after Ctrl-C.
"""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tools.download.catalogue import (
    BASES,
    CONTROLS_10,
    CONTROLS_11,
    EVERY_CONTROL,
    HUB,
    OTHER_HUB,
    Published,
    find,
)
from tools.download.fetch import Report, Source, check_space, download, missing_bytes
from tools.download.http import DownloadError, LockedError, NoAnswerError, NotHereError, open_client
from tools.download.partial import Part

FAILED, INTERRUPTED = 1, 130  # 128 + SIGINT, as shells count


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | get")
    listing = commands.add_parser("list", help="what can be fetched, and what of it is there")
    getting = commands.add_parser("get", help="fetch files by name")
    getting.add_argument("names", nargs="+", metavar="NAME", help=f"of `list`, or {EVERY_CONTROL}")
    for command in (listing, getting):
        command.add_argument(
            "--dest", type=Path, default=Path("models"), help="folder of the files (default: %(default)s)"
        )
    getting.add_argument(
        "--mirror",
        default=os.environ.get("HF_ENDPOINT") or HUB,
        metavar="URL",
        help=f"what stands for {HUB} (default: %(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code; what goes wrong is said in one sentence on stderr."""
    args = parse_args(argv)
    try:
        if args.command == "list":
            return _say("\n".join(_listing(args.dest)))
        return _get(find(args.names), _checked_mirror(args.mirror), args.dest)
    except KeyboardInterrupt:
        return _say(
            f"stopped; what came so far stays in {args.dest}, the same command goes on from there",
            INTERRUPTED,
        )
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _say(
                f"the disk of {args.dest} is full: free some, then repeat the command to go on", FAILED
            )
        reason = error.strerror or str(error)
        return _say(f"cannot write to {args.dest} ({reason}): choose another folder with --dest", FAILED)
    except (ValueError, DownloadError) as error:
        return _say(str(error), FAILED)


def _get(wanted: dict[str, Published], mirror: str, dest: Path) -> int:
    """Fetch one after the other; a file that cannot be had does not keep the others back."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    check_space(dest, sum(missing_bytes(one, dest / one.file) for one in wanted.values()))
    token = os.environ.get("HF_TOKEN", "").strip() if mirror == HUB else ""
    failed = False
    with open_client(token) as client, logging_redirect_tqdm([logging.getLogger("tools.download.fetch")]):
        for one in wanted.values():
            try:
                _say(_get_one(Source(client, one, one.url(mirror)), dest / one.file))
            except (DownloadError, BlockingIOError) as error:
                failed = True
                _say(f"{one.file}: {_advice(error, one, mirror, dest)}", FAILED)
                if isinstance(error, NoAnswerError):
                    break  # nor would it answer for the next file
    return FAILED if failed else 0


def _get_one(source: Source, target: Path) -> str:
    with _bars(target.name) as report:
        fetched, checked = download(source, target, report)
    state = "fetched" if fetched else "there already"
    return f"{target}: {state}, its {checked} is right; it goes with {source.published.yaml}"


def _advice(error: Exception, published: Published, mirror: str, dest: Path) -> str:
    """The sentence of `error`, and what may help."""
    if isinstance(error, LockedError) and mirror == HUB:
        page = f"{HUB}/{published.repository}"
        return (
            f"{error}: accept the terms at {page}, set HF_TOKEN to a token of yours, and repeat the command"
        )
    if isinstance(error, NotHereError | LockedError):
        other = HUB if mirror != HUB else OTHER_HUB
        return f"{error}: try --mirror {other}, or fetch it in a browser and put it into {dest}"
    return str(error)


@contextmanager
def _bars(name: str) -> Iterator[Report]:
    """A progress bar for each thing that is done with the file `name`, on a terminal."""
    from tqdm import tqdm

    bars: dict[str, tqdm] = {}

    def report(doing: str, done: int, total: int | None) -> None:
        if doing not in bars:
            bars[doing] = tqdm(
                desc=f"{name}, {doing}", total=total, initial=done, unit="B", unit_scale=True, disable=None
            )
        bars[doing].update(done - bars[doing].n)

    try:
        yield report
    finally:
        for bar in bars.values():
            bar.close()


def _listing(dest: Path) -> Iterator[str]:
    sections = {
        "ControlNet 1.1, the control branch alone": CONTROLS_11,
        "ControlNet 1.0, base model and control branch in one file": CONTROLS_10,
        "base models": BASES,
    }
    for title, files in sections.items():
        yield title
        for name, one in files.items():
            known = "sha256" if one.sha256 else "size" if one.size else "server"
            line = f"  {name:25} {one.file:37} {one.gigabytes:.2f} GB  {known:6}  "
            yield (line + _presence(one, dest / one.file)).rstrip()
    total = sum(one.gigabytes for one in CONTROLS_11.values())
    yield f"`get {EVERY_CONTROL}` fetches the first {len(CONTROLS_11)}, {total:.1f} GB"
    yield "checked by: a known sha256, a known size, or what the server says of the file"


def _presence(published: Published, target: Path) -> str:
    if target.is_file():
        return "there" if published.may_have(target.stat().st_size) else "another file"
    part = Part(target).length()
    return f"{part / published.most_bytes:.0%} there" if part else ""


def _checked_mirror(mirror: str) -> str:
    parts = urlsplit(mirror)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"--mirror {mirror} is no address of a server: write it like {OTHER_HUB}")
    return mirror.rstrip("/")


def _say(sentence: str, code: int = 0) -> int:
    (sys.stderr if code else sys.stdout).write(sentence + "\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
