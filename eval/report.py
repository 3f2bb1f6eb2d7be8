"""Tables of the scores, as plain text, and the bars that a shipped model has to pass."""

from typing import Any

from eval.fidelity import COLOUR_BAR, IOU_BAR

BARS = {"followed_share": 0.95, "coloured_share": 0.90, "median_psnr": 22.0, "median_ssim": 0.85}
LABELS = {
    "followed_share": f"outline followed (IoU >= {IOU_BAR:.2f})",
    "coloured_share": f"both colours within {COLOUR_BAR:.0f}/255",
    "median_psnr": "median PSNR",
    "median_ssim": "median SSIM",
    "median_iou": "median IoU",
}
LABEL_WIDTH, VALUE_WIDTH = 34, 12
Summary = dict[str, float]  # by the names of LABELS; shares are 0 to 1


def quality_table(report: dict[str, Any]) -> str:
    """Format a report of `eval.fill50k.quality`: each score, its bar, and what it is to be seen beside."""
    scores, without, ceiling = report["controlled"], report["uncontrolled"], report["autoencoder"]
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items() if value is not None)
    lines = [f"{report['count']} held-out pictures: {settings}"]
    for name, bar in BARS.items():
        verdict = f"bar {_shown(name, bar)}: {'passed' if scores[name] >= bar else 'MISSED'}"
        lines.append(_line(LABELS[name], _shown(name, scores[name]), verdict))
    lines += [
        _line("followed, hand-drawn third", _shown("followed_share", report["hand_drawn_followed_share"])),
        _line("followed, without control", _shown("followed_share", without["followed_share"])),
        _line("followed, autoencoder alone", _shown("followed_share", ceiling["followed_share"])),
        _line("colours, autoencoder alone", _shown("coloured_share", ceiling["coloured_share"])),
        _line(LABELS["median_iou"], _shown("median_iou", scores["median_iou"])),
        _line("median IoU, without control", _shown("median_iou", without["median_iou"])),
        _line("seconds per picture", f"{report['seconds_per_picture']:.2f}"),
    ]
    return "\n".join(lines)


def robustness_table(rows: dict[str, Summary]) -> str:
    """Format the rows of `eval.fill50k.robustness`, one way of drawing each."""
    columns = ("followed_share", "coloured_share", "median_iou")
    lines = [_line("outline read by scribble", "followed", "colours", "median IoU")]
    lines += [_line(name, *(_shown(column, row[column]) for column in columns)) for name, row in rows.items()]
    return "\n".join(lines)


def missed(report: dict[str, Any]) -> list[str]:
    """Name the bars that a report of `eval.fill50k.quality` misses, in words; a NaN misses every bar."""
    scores = report["controlled"]
    return [
        f"{LABELS[name]} is {_shown(name, scores[name])}, the bar is {_shown(name, bar)}"
        for name, bar in BARS.items()
        if not scores[name] >= bar
    ]


def _shown(name: str, value: float) -> str:
    if name.endswith("share"):
        return f"{100 * value:.1f} %"
    return f"{value:.2f} dB" if name.endswith("psnr") else f"{value:.3f}"


def _line(label: str, *values: str) -> str:
    return f"{label:<{LABEL_WIDTH}}" + "  ".join(f"{value:>{VALUE_WIDTH}}" for value in values)
