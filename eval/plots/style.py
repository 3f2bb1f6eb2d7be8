"""How plots look: 900 pixels wide, colours that the colour-blind can tell apart, in two languages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from common.atomic import atomic_write
from common.shell import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito 2008, without yellow, which is pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
WIDTH, DPI = 6.0, 150  # inches: 900 pixels, shown one to one in a README
KOREAN_FONTS = ("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo",
                "Noto Sans CJK JP", "Noto Serif CJK KR", "Noto Serif CJK JP")  # fmt: skip
SETTINGS = {
    "font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False,
    "axes.spines.right": False, "svg.fonttype": "path", "svg.hashsalt": "featherweight",
}  # fmt: skip


def korean_font() -> str | None:
    """The first font here that has Hangul; None without one."""
    from matplotlib import font_manager

    names = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in KOREAN_FONTS if name in names), None)


def language_here(wanted: str) -> str:
    """`wanted`, or English with a sentence where no font can write it."""
    if wanted == "ko" and korean_font() is None:
        say("no Korean font is installed (fonts-noto-cjk brings one): labels are English")
        return "en"
    return wanted


@contextmanager
def styled(language: str) -> Iterator[None]:
    """Matplotlib's settings for all plots of a command; no window is opened."""
    import matplotlib

    matplotlib.use("Agg")
    font = {"font.family": [korean_font(), "sans-serif"]} if language == "ko" else {}
    with matplotlib.rc_context(SETTINGS | font):
        yield


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `path`.png and `path`.svg, each whole or not at all."""
    from matplotlib import pyplot

    written = []
    for kind in ("png", "svg"):
        place = path.with_suffix(f".{kind}")
        with atomic_write(place) as partial:
            metadata = {"Date": None} if kind == "svg" else {}
            figure.savefig(partial, format=kind, dpi=DPI, metadata=metadata)
        written.append(place)
    pyplot.close(figure)
    return written
