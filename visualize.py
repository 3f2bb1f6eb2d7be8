"""Draws what was measured: bars with intervals, quality against its price, pictures, training curves.

    python visualize.py                                      # results/ -> outputs/vis/
    python visualize.py inputs maps full lite --truth truth  # a grid, PSNR and SSIM under each picture
    python visualize.py controlnet-model                     # a training run's curves
    python visualize.py --lang ko

Folders of pictures pair by name; the first eight are shown. Plots are PNG and SVG, 900 pixels wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.flags import add_flags, flag, read_flags
from common.shell import Parser, run_command


@dataclass(frozen=True)
class VisualizeFlags:
    """The command line."""

    folders: tuple[Path, ...] = flag(
        (),
        "of pictures, or one of a training run (default: results/)",
        "folders",
        nargs="*",
        metavar="FOLDER",
    )
    truth: Path | None = flag(None, "right answers, for PSNR and SSIM (default: none)", metavar="FOLDER")
    out: Path = flag(Path("outputs/vis"), "folder", metavar="DIR")
    lang: Literal["en", "ko"] = flag("en", "of labels")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = Parser("python visualize.py", __doc__)
    add_flags(parser, VisualizeFlags)
    args = parser.parse_args(argv)
    return run_command(lambda: _run(read_flags(VisualizeFlags, args)))


def _run(flags: VisualizeFlags) -> str:
    from eval.plots import curves, grid, rows
    from eval.plots.style import language_here, styled

    language = language_here(flags.lang)
    with styled(language):
        if not flags.folders:
            written = rows.plot_results(Path(__file__).parent / "results", flags.out, language)
        elif len(flags.folders) == 1 and not grid.has_pictures(flags.folders[0]):
            written = curves.plot_run(flags.folders[0], flags.out, language)
        else:
            written = [grid.plot_grid(flags.folders, flags.truth, flags.out)]
    return "\n".join(map(str, written))


if __name__ == "__main__":
    raise SystemExit(main())
