"""One sample of Fill50k's task: a filled shape on a plain background, and the outline it is to be drawn from.

Zhang et al. 2023 train ControlNet on circles: source = white outline on black, target = the filled circle,
prompt = its colours. A `Scene` describes one sample, whatever the image's size; `render` draws it. One in
twenty combinations of colour, shape and background is held out by a fixed rule, so that tests use prompts
that no training run has seen.
"""

from dataclasses import dataclass, replace
from zlib import crc32

import cv2
import numpy as np

from scenes.colours import COLOURS, differ_clearly
from scenes.shapes import SHAPES, outline

BASE_SIZE = 512  # line widths are given in pixels of an image of this side, as in Fill50k
HELD_OUT_ONE_IN = 20
RADIUS_RANGE = (0.16, 0.40)  # of the side; a smaller crescent at 128 pixels is thinner than one latent cell
WIDTH_RANGE = (1.0, 24.0)  # pixels at BASE_SIZE, drawn evenly on a logarithmic scale
MAX_TILT = np.pi / 6  # a square stays a square to the eye, a heart stays upright
WOBBLE_REACH = 0.12  # of the radius: the farthest a point moves at wobble 1
WOBBLE_WAVES = np.arange(2, 6)  # per turn: a lower one only moves the shape, higher ones are no hand's
MAX_GAPS = 3
GAP_RANGE = (0.02, 0.06)  # of a ring's length, each
WOBBLE_RANGE = (0.2, 1.0)  # below it a wobble cannot be seen
EDGE = 0.01  # of the side, kept free around the shape
SUPERSAMPLE = 4  # per axis: 16 levels of coverage at the edges
SUBPIXEL_BITS = 4  # fixed-point bits that OpenCV gets below the supersampled pixel


@dataclass(frozen=True)
class Scene:
    """What is drawn, in units of the side, so that every size shows the same image.

    centre: (x, y) in [0, 1], y downwards. radius: of the circle around the shape. angle: radians, clockwise.
    wobble: 0 exact to 1 a shaky hand; the fill follows the wobbled outline. width: of the line, pixels at
    512. gaps: (start, length) pieces missing from the line, fractions of a ring's length; they go to the
    rings in turn and leave the fill alone.
    """

    shape: str
    fill: str
    background: str
    centre: tuple[float, float] = (0.5, 0.5)
    radius: float = 0.25
    angle: float = 0.0
    wobble: float = 0.0
    wobble_seed: int = 0
    width: float = 3.0
    gaps: tuple[tuple[float, float], ...] = ()

    @property
    def prompt(self) -> str:
        """The sentence that belongs to the image: "cyan circle with brown background"."""
        return f"{self.fill} {self.shape} with {self.background} background"

    @property
    def reach(self) -> float:
        """How near to the image's border the centre may come, in units of the side."""
        return self.radius * (1 + WOBBLE_REACH * self.wobble) + EDGE


def is_held_out(fill: str, shape: str, background: str) -> bool:
    """Tell whether a combination is kept for tests: a fixed rule (CRC-32), the same on every machine."""
    return crc32(f"{fill}/{shape}/{background}".encode()) % HELD_OUT_ONE_IN == 0


def random_scene(
    rng: np.random.Generator, shapes: tuple[str, ...] = SHAPES, *, held_out: bool | None = False,
    hand_drawn: float = 0.0, widths: tuple[float, ...] = WIDTH_RANGE,
) -> Scene:  # fmt: skip
    """Draw a scene that lies wholly inside the image.

    held_out: only combinations for training (False), only for tests (True), or any (None). hand_drawn:
    probability of a wobbled outline with gaps. widths: lowest and highest line width, pixels at 512. Fill and
    background are at least `colours.MIN_CONTRAST` apart: closer ones make an image whose fill cannot be told
    from its background.
    """
    fill, shape, background = _combination(rng, shapes, held_out)
    radius = rng.uniform(*RADIUS_RANGE)
    angle = rng.uniform(-MAX_TILT, MAX_TILT)
    width = float(np.exp(rng.uniform(*np.log(widths))))
    wobble, gaps = _hand(rng) if rng.random() < hand_drawn else (0.0, ())
    scene = Scene(shape, fill, background, (0.5, 0.5), radius, angle, wobble, 0, width, gaps)
    x, y = rng.uniform(scene.reach, 1 - scene.reach, size=2)
    return replace(scene, centre=(float(x), float(y)), wobble_seed=int(rng.integers(2**31)))


def render(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw source uint8 [H W 3] (white line on black), target uint8 [H W 3] and the interior, bool [H W].

    H = W = size, any whole number above 0. The same scene gives the same bytes.
    """
    rings = _rings(scene)
    inside = np.zeros((size * SUPERSAMPLE,) * 2, np.uint8)
    cv2.fillPoly(inside, [_fixed_point(ring, size) for ring in rings], 255, shift=SUBPIXEL_BITS)
    coverage = cv2.resize(inside, (size, size), interpolation=cv2.INTER_AREA)
    fill, background = (np.array(COLOURS[name], np.float32) for name in (scene.fill, scene.background))
    levels = np.arange(256, dtype=np.float32)[:, None] / 255
    palette = np.rint(background + levels * (fill - background)).astype(np.uint8)  # one colour per coverage
    line = cv2.resize(_line(scene, rings, size), (size, size), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(line, cv2.COLOR_GRAY2RGB), palette[coverage], coverage > 127


def _combination(
    rng: np.random.Generator, shapes: tuple[str, ...], held_out: bool | None
) -> tuple[str, str, str]:
    """Fill, shape and background."""
    names = tuple(COLOURS)
    while True:
        fill, background = (names[i] for i in rng.integers(len(names), size=2))
        shape = shapes[rng.integers(len(shapes))]
        if differ_clearly(fill, background) and held_out in (None, is_held_out(fill, shape, background)):
            return fill, shape, background


def _hand(rng: np.random.Generator) -> tuple[float, tuple[tuple[float, float], ...]]:
    count = int(rng.integers(MAX_GAPS + 1))
    gaps = tuple((float(rng.random()), float(rng.uniform(*GAP_RANGE))) for _ in range(count))
    return float(rng.uniform(*WOBBLE_RANGE)), gaps


def _rings(scene: Scene) -> list[np.ndarray]:
    """Rings [n 2] of the scene in units of the side, wobbled, turned and placed."""
    cos, sin = np.cos(scene.angle), np.sin(scene.angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    rng = np.random.default_rng(scene.wobble_seed)
    rings = []
    for points in outline(scene.shape):
        if scene.wobble:
            points = points + scene.wobble * WOBBLE_REACH * _wave(len(points), rng)
        rings.append(points @ turn.T * scene.radius + scene.centre)
    return rings


def _wave(count: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth closed path of displacements [n 2], none longer than 1."""
    turn = 2 * np.pi * np.arange(count)[:, None] / count * WOBBLE_WAVES
    waves = np.concatenate([np.cos(turn), np.sin(turn)], axis=1)  # [n, 2 * waves]
    strengths = rng.normal(size=(waves.shape[1], 2)) / np.tile(WOBBLE_WAVES, 2)[:, None]
    path = waves @ strengths
    return path / np.linalg.norm(path, axis=1).max()


def _fixed_point(points: np.ndarray, size: int) -> np.ndarray:
    """Coordinates for OpenCV, whose pixel centres are whole numbers: hence the half pixel."""
    pixels = points * (size * SUPERSAMPLE) - 0.5
    return np.rint(pixels * 2**SUBPIXEL_BITS).astype(np.int32)


def _line(scene: Scene, rings: list[np.ndarray], size: int) -> np.ndarray:
    """The outline, supersampled, uint8; it stays one pixel wide after scaling down, or it would fade away."""
    canvas = np.zeros((size * SUPERSAMPLE,) * 2, np.uint8)
    thickness = max(1, round(max(1.0, scene.width * size / BASE_SIZE) * SUPERSAMPLE))
    for number, ring in enumerate(rings):
        pieces = _pieces(ring, scene.gaps[number :: len(rings)])
        whole = len(pieces) == 1 and len(pieces[0]) == len(ring)
        lines = [_fixed_point(piece, size) for piece in pieces]
        cv2.polylines(canvas, lines, whole, 255, thickness, shift=SUBPIXEL_BITS)
    return canvas


def _pieces(ring: np.ndarray, gaps: tuple[tuple[float, float], ...]) -> list[np.ndarray]:
    """Runs of neighbouring points [n 2] that no gap covers; a ring without gaps is one run."""
    at = np.arange(len(ring)) / len(ring)
    kept = np.all([(at - start) % 1 >= length for start, length in gaps], axis=0)
    if kept.all() or not kept.any():
        return [ring] if kept.all() else []
    first = int(np.argmin(kept))  # begin inside a gap, so that no run crosses the seam
    kept, ring = np.roll(kept, -first), np.roll(ring, -first, axis=0)
    runs = np.split(np.arange(len(ring)), np.flatnonzero(np.diff(kept)) + 1)
    return [ring[run] for run in runs if kept[run[0]]]
