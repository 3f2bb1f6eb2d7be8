"""From heatmaps of joints and fields along limbs to people.

Cao et al. 2017, "Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields": a joint is a peak of
its heatmap; two joints make a limb where the field between them points from one to the other; limbs that
share a joint make a person.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from annotator.pose import BODY, LIMBS

# The limbs that are drawn and two more, from shoulder to ear, which only hold people together.
JOINED = (*LIMBS, (2, 16), (5, 17))
# Which two channels of the fields, x and y, belong to each of them.
FIELDS = (
    (12, 13), (20, 21), (14, 15), (16, 17), (22, 23), (24, 25), (0, 1), (2, 3), (4, 5), (6, 7), (8, 9),
    (10, 11), (28, 29), (30, 31), (34, 35), (32, 33), (36, 37), (18, 19), (26, 27),
)  # fmt: skip
# All published, as are the numbers in `_limbs`.
PEAK, PEAK_BLUR = 0.1, 3.0  # the least height of a peak; pixels
SAMPLES, ALONG, MOST_SAMPLES = (
    10,
    0.05,
    8,
)  # points of a limb; how much of the field must point along it there
FEWEST_JOINTS, LEAST_SCORE = 4, 0.4  # of a person; the score is that of a joint on the average
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


@dataclass
class _Person:
    """joints: joint -> peak. score: of joints and limbs together. count: of joints, with those replaced."""

    joints: dict[int, int] = field(default_factory=dict)
    score: float = 0.0
    count: int = 0


def find_peaks(heatmaps: np.ndarray) -> np.ndarray:
    """The joints that float [H W 18 or more] shows: [n 4] as x, y, height, and which joint it is."""
    found = []
    for joint in range(len(BODY)):
        heat = np.ascontiguousarray(heatmaps[:, :, joint])
        smooth = cv2.GaussianBlur(heat, (0, 0), PEAK_BLUR, borderType=cv2.BORDER_REFLECT)
        rows, columns = np.nonzero((smooth >= cv2.dilate(smooth, CROSS)) & (smooth > PEAK))
        found.append(np.stack([columns, rows, heat[rows, columns], np.full(len(rows), joint)], axis=1))
    return np.concatenate(found).astype(np.float64)


def find_people(peaks: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """Who the peaks [n 4] of `find_peaks` belong to, by the fields [H W 38]: [m 20], a row for each person.

    As published: 18 numbers of peaks, -1 for a joint that was not found, then the score and the count.
    """
    people: list[_Person] = []
    for number, ((start, end), channels) in enumerate(zip(JOINED, FIELDS, strict=True)):
        ids = [np.flatnonzero(peaks[:, 3] == joint) for joint in (start, end)]
        for first, second, score in _limbs(peaks, *ids, fields[:, :, channels]):
            _join(people, {start: first, end: second}, score, peaks[:, 2], begin=number < len(LIMBS))
    rows = [
        [*(one.joints.get(joint, -1) for joint in range(len(BODY))), one.score, one.count]
        for one in people
        if one.count >= FEWEST_JOINTS and one.score / one.count >= LEAST_SCORE
    ]
    return np.array(rows, np.float64).reshape(-1, len(BODY) + 2)


def _limbs(
    peaks: np.ndarray, starts: np.ndarray, ends: np.ndarray, field: np.ndarray
) -> list[tuple[int, int, float]]:
    """The limbs between peaks `starts` and `ends` that `field` [H W 2] shows, each peak used once."""
    if not (len(starts) and len(ends)):
        return []
    way = peaks[None, ends, :2] - peaks[starts, None, :2]  # [starts ends 2]
    length = np.linalg.norm(way, axis=2).clip(0.001)
    steps = np.linspace(0, 1, SAMPLES)[:, None, None, None]
    columns, rows = np.moveaxis(np.rint(peaks[starts, None, :2] + way * steps).astype(int), -1, 0)
    along = (field[rows, columns] * (way / length[:, :, None])).sum(axis=3)  # [SAMPLES starts ends]
    far = np.minimum(0.5 * len(field) / length - 1, 0)  # longer than half the picture is unlikely
    scores = along.mean(axis=0) + far
    likely = ((along > ALONG).sum(axis=0) > MOST_SAMPLES) & (scores > 0)
    pairs = sorted(zip(*np.nonzero(likely), strict=True), key=lambda pair: -scores[pair])
    taken: set[tuple[str, int]] = set()
    limbs = []
    for pair in pairs:
        ends_taken = {("start", pair[0]), ("end", pair[1])}
        if not taken & ends_taken:
            taken |= ends_taken
            limbs.append((int(starts[pair[0]]), int(ends[pair[1]]), float(scores[pair])))
    return limbs


def _join(
    people: list[_Person], limb: dict[int, int], score: float, heights: np.ndarray, *, begin: bool
) -> None:
    """Give the limb to who has one of its joints, join two who have one each, or begin somebody new."""
    owners = [one for one in people if any(one.joints.get(joint) == peak for joint, peak in limb.items())][:2]
    end, peak = list(limb.items())[1]
    if not owners:
        if begin:
            people.append(_Person(dict(limb), float(heights[list(limb.values())].sum()) + score, 2))
        return
    owner, *others = owners
    if others and not owner.joints.keys() & others[0].joints.keys():
        owner.joints |= others[0].joints
        owner.score += others[0].score + score
        owner.count += others[0].count
        people.remove(others[0])
    elif others or owner.joints.get(end) != peak:
        owner.joints[end] = peak
        owner.score += float(heights[peak]) + score
        owner.count += 1
