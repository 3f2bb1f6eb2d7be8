"""The CSS colours, named in words as a prompt would say them.

Values come from Pillow's table of the CSS names. Its names are run together ("palegoldenrod"), which a text
encoder reads as noise, so they are split here: "pale golden rod". Two names for one colour (grey and gray,
aqua and cyan, fuchsia and magenta) would teach that the same words differ, so one of each pair is dropped.
"""

from PIL import ImageColor

RGB = tuple[int, int, int]

# The words that CSS names are put together from; without "gold", which would cut "goldenrod" wrongly.
WORDS = """
    alice almond antique aquamarine black blanched blue blush brick brown burly cadet chiffon coral cornflower
    cream cyan dark deep dew dim dodger drab fire floral forest ghost golden gray green honey hot indian khaki
    lace lavender lawn lemon light lime magenta medium midnight mint misty navajo old olive orange orchid pale
    papaya peach pink powder puff purple rebecca red rod rose rosy royal saddle salmon sandy sea shell sky
    slate smoke spring steel turquoise violet whip white wood yellow
"""
VOCABULARY = tuple(WORDS.split())
DROPPED = {"aqua", "fuchsia"}  # the same RGB as cyan and magenta
TOLERANCE = 25  # of 255, mean over channels: how far a painted colour may be and still be called by its name
# Twice the tolerance, so that no colour can pass as the fill and as the background, and 10 for blurred edges.
MIN_CONTRAST = 2 * TOLERANCE + 10


def _in_words(name: str) -> str:
    for word in VOCABULARY:
        rest = _in_words(name[len(word) :]) if name.startswith(word) and name not in VOCABULARY else ""
        if rest in VOCABULARY or " " in rest:
            return f"{word} {rest}"
    return name


def contrast(first: RGB, second: RGB) -> float:
    """Mean absolute difference of the three channels, 0 to 255: the measure the colour score uses too."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)


def differ_clearly(first: str, second: str) -> bool:
    """Tell whether two named colours are far enough apart to be fill and background (`MIN_CONTRAST`)."""
    return contrast(COLOURS[first], COLOURS[second]) >= MIN_CONTRAST


COLOURS: dict[str, RGB] = {
    _in_words(name): ImageColor.getrgb(name)
    for name in ImageColor.colormap
    if "grey" not in name and name not in DROPPED
}
