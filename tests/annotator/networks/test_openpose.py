"""People in known places: their heatmaps and fields in, their joints out."""

import numpy as np
import pytest
import torch

from annotator.networks.libraries import auxiliary, quiet
from annotator.networks.openpose import Eyes, find_bodies, people_of, pose_of
from annotator.networks.openpose_parts import face_box, find_face, find_hand, hand_box
from annotator.networks.part_affinity import FIELDS, JOINED
from annotator.pose import BODY

HEIGHT, WIDTH = 384, 512
SEEN, STRIDE = 184, 8  # the height at which bodies are looked at; pixels of it for one of the network's
STANDING = np.array([
    (0, -80), (0, -55), (-25, -50), (-40, -20), (-45, 10), (25, -50), (40, -20), (45, 10), (-15, 10),
    (-17, 50), (-18, 90), (15, 10), (17, 50), (18, 90), (-6, -86), (6, -86), (-14, -82), (14, -82),
], float)  # fmt: skip
PEOPLE = [STANDING + (150, 150), 1.3 * STANDING + (350, 200)]
HIDDEN = BODY.index("right_wrist")  # of the second person


def drawn(people):
    """Heatmaps [h w 19] and fields [h w 38] as the networks give them for these people."""
    scale = SEEN / HEIGHT / STRIDE
    height, width = (-(-int(side * SEEN / HEIGHT) // STRIDE) for side in (HEIGHT, WIDTH))
    y, x = np.mgrid[:height, :width]
    heat = np.zeros((height, width, 19), np.float32)
    fields = np.zeros((height, width, 38), np.float32)
    for number, person in enumerate(people):
        places = person * scale
        seen = [joint for joint in range(len(BODY)) if not (number == 1 and joint == HIDDEN)]
        for joint in seen:
            distance = (x - places[joint, 0]) ** 2 + (y - places[joint, 1]) ** 2
            heat[:, :, joint] = np.maximum(heat[:, :, joint], np.exp(-distance / 4.5))
        for (start, end), channels in zip(JOINED, FIELDS, strict=True):
            if start in seen and end in seen:
                way = places[end] - places[start]
                length = np.hypot(*way)
                way /= length
                along = (x - places[start, 0]) * way[0] + (y - places[start, 1]) * way[1]
                aside = abs((x - places[start, 0]) * way[1] - (y - places[start, 1]) * way[0])
                fields[(along >= -0.5) & (along <= length + 0.5) & (aside < 1.5), channels[0]] = way[0]
                fields[(along >= -0.5) & (along <= length + 0.5) & (aside < 1.5), channels[1]] = way[1]
    return heat, fields


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def eyes():
    heat, fields = drawn(PEOPLE)
    return Eyes(lambda _: [fields, heat])


def test_joints_are_where_people_have_them(picture):
    people = people_of(*find_bodies(eyes(), picture))
    assert len(people) == 2
    for wanted, person in zip(PEOPLE, sorted(people, key=lambda one: one["nose"][0]), strict=True):
        for joint, name in enumerate(BODY):
            if name in person:
                assert (
                    np.abs(person[name][:2] - wanted[joint]).max() < 14
                )  # less than one of the network's pixels
    assert sorted(len(one) for one in people) == [17, 18]
    assert [name for name in BODY if any(name not in one for one in people)] == [BODY[HIDDEN]]


def test_people_are_those_of_the_published_program(picture):
    heat, fields = drawn(PEOPLE)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.place = torch.nn.Parameter(torch.zeros(1))

        def forward(self, _):
            return tuple(torch.from_numpy(one).permute(2, 0, 1)[None] for one in (fields, heat))

    with quiet():
        auxiliary("open_pose.util")  # it and the next import each other; this order works
        published = object.__new__(auxiliary("open_pose.body").Body)
        published.model = Network()
        candidate, subset = published(picture)
    peaks, people = find_bodies(eyes(), picture)
    np.testing.assert_allclose(peaks[:, :3], candidate[:, :3], atol=1e-6)
    np.testing.assert_allclose(people, subset, atol=1e-5)


def test_nobody_is_seen_where_nothing_is(picture):
    nothing = Eyes(lambda _: [np.zeros((23, 31, 38), np.float32), np.zeros((23, 31, 19), np.float32)])
    peaks, people = find_bodies(nothing, picture)
    assert peaks.shape == (0, 4)
    assert people.shape == (0, 20)


def test_a_hand_is_looked_for_beyond_the_wrist():
    arm = {"left_shoulder": (100, 100), "left_elbow": (150, 100), "left_wrist": (200, 100)}
    person = {name: np.array([*place, 1.0]) for name, place in arm.items()}
    left, top, width = hand_box(person, "left", (400, 400))
    assert left < 200 + 0.33 * 50 < left + width
    assert abs(top + width / 2 - 100) <= 1
    assert hand_box(person, "right", (400, 400)) is None


def test_a_face_is_around_the_nose_and_inside_the_picture():
    head = {"nose": (50, 60), "left_eye": (60, 50), "right_ear": (30, 55)}
    person = {name: np.array([*place, 1.0]) for name, place in head.items()}
    left, top, width = face_box(person, (400, 400))
    assert left <= 50 <= left + width
    assert top <= 60 <= top + width
    assert min(left, top) >= 0
    assert face_box({"nose": person["nose"]}, (400, 400)) is None


def spot(size, row, column, channels):
    y, x = np.mgrid[:size, :size]
    heat = np.exp(-((x - column) ** 2 + (y - row) ** 2) / 8.0)
    return np.repeat(heat[:, :, None], channels, axis=2).astype(np.float32)


def test_finger_joints_are_placed_in_the_picture(picture):
    def see(shown):
        size = len(shown) // 8
        return [spot(size, 0.25 * size, 0.75 * size, 22)]

    joints = find_hand(see, picture, (100, 50, 200))
    assert joints.shape == (21, 3)
    assert np.abs(joints[:, :2] - (250, 100)).max() < 8
    assert (joints[:, 2] > 0).all()


def test_dots_of_a_face_are_placed_in_the_picture_and_the_background_is_none(picture):
    dots = find_face(lambda _: [spot(48, 12, 36, 71)], picture, (100, 50, 200))
    assert dots.shape == (70, 3)
    assert np.abs(dots[:, :2] - (100 + 36 / 47 * 199, 50 + 12 / 47 * 199)).max() < 1e-6


def test_a_pose_is_in_parts_of_the_picture(picture):
    person = people_of(*find_bodies(eyes(), picture))[0]
    body = pose_of(person, picture, eyes()).body
    assert body.shape == (18, 3)
    assert ((body[:, :2] >= 0) & (body[:, :2] <= 1)).all()
    np.testing.assert_allclose(body[0, :2] * (WIDTH, HEIGHT), person["nose"][:2])
