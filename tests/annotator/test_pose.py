import json
from dataclasses import replace

import numpy as np
import pytest

from annotator.pose import BODY, LIMBS, Pose, body_from_coco, draw_poses
from annotator.pose_json import annotate, read_poses

# Each joint in a row of its own, so that no two share a place.
PLACES = np.stack([np.tile([0.2, 0.5, 0.8], 6), np.linspace(0.06, 0.94, 18), np.ones(18)], axis=1)
PERSON = Pose(PLACES)
SIZE = (512, 384)  # height, width
COCO = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee",
    "left_ankle", "right_ankle",
)  # fmt: skip


def at(picture, joint):
    return picture[int(joint[1] * picture.shape[0]), int(joint[0] * picture.shape[1])]


def without(number):
    body = PLACES.copy()
    body[number, 2] = 0
    return replace(PERSON, body=body)


def test_each_joint_is_a_disc_of_its_own_colour_where_it_is():
    picture = draw_poses([PERSON], SIZE)
    colours = {tuple(at(picture, joint)) for joint in PLACES}
    assert len(colours) == 18
    assert all(max(colour) == 255 for colour in colours)
    assert tuple(at(picture, PLACES[0])) == (255, 0, 0)
    assert tuple(at(picture, PLACES[17])) == (255, 0, 85)


@pytest.mark.parametrize("number", range(len(LIMBS)))
def test_each_limb_is_a_darker_stroke_between_its_joints(number):
    start, end = LIMBS[number]
    body = np.zeros((18, 3))
    body[[start, end]] = [[0.3, 0.3, 1], [0.7, 0.6, 1]]
    picture = draw_poses([Pose(body)], SIZE)
    middle = picture[int(0.45 * 512), int(0.5 * 384)]
    assert middle.max() == 153, "0.6 of 255"
    others = draw_poses([Pose(body * [[1, 1, float(i != end)] for i in range(18)])], SIZE)
    assert not others[int(0.45 * 512), int(0.5 * 384)].any()


def test_a_joint_that_was_not_seen_is_left_out_with_its_limbs():
    full, part = draw_poses([PERSON], SIZE), draw_poses([without(4)], SIZE)
    changed = (full != part).any(axis=2)
    assert changed.any()
    assert not at(part, PLACES[4]).any()
    rows = np.flatnonzero(changed.any(axis=1)) / SIZE[0]
    assert PLACES[3, 1] - 0.02 < rows.min()
    assert rows.max() < PLACES[4, 1] + 0.02


def test_hands_have_the_colours_of_a_circle_and_faces_are_white():
    hand = np.stack(
        [0.3 + 0.02 * (np.arange(21) % 5), 0.3 + 0.02 * (np.arange(21) // 5), np.ones(21)], axis=1
    )
    face = np.array([[0.7, 0.7, 1], [0.75, 0.7, 0]])
    nobody = np.zeros((18, 3))
    picture = draw_poses([Pose(nobody, right_hand=hand, face=face)], SIZE)
    assert tuple(at(picture, hand[7])) == (0, 0, 255)
    assert tuple(at(picture, face[0])) == (255, 255, 255)
    assert not at(picture, face[1]).any(), "a dot that was not seen"
    fingers = {tuple(colour) for colour in picture.reshape(-1, 3)} - {(0, 0, 0), (0, 0, 255), (255, 255, 255)}
    assert len(fingers) > 10


def test_nobody_is_black_and_two_people_are_both_there():
    assert not draw_poses([], SIZE).any()
    other = replace(PERSON, body=PLACES * [0.5, 1, 1])
    both = draw_poses([PERSON, other], SIZE)
    assert all(at(both, joint).any() for joint in (*PERSON.body, *other.body))


def test_coco_joints_go_to_their_places_and_the_neck_between_the_shoulders():
    joints = np.random.default_rng(0).uniform(0.1, 0.9, (17, 3))
    body = body_from_coco(joints)
    for number, name in enumerate(BODY):
        if name != "neck":
            assert np.array_equal(body[number], joints[COCO.index(name)])
    assert body[1, :2] == pytest.approx((joints[5, :2] + joints[6, :2]) / 2)
    assert body[1, 2] == min(joints[5, 2], joints[6, 2])


# The forms of JSON


def pixels(joints, width=640, height=480):
    return (joints * [width, height, 1]).ravel().tolist()


def coco(joints=PLACES):
    """The 17 joints of COCO of a body of 18, as pixels."""
    return pixels(np.stack([joints[BODY.index(name)] for name in COCO]))


BODY_25 = np.concatenate([PLACES[:8], [[0.5, 0.5, 1]], PLACES[8:], np.zeros((6, 3))])
PEOPLE_18 = {"people": [{"pose_keypoints_2d": pixels(PLACES)}]}
FORMS = {
    "openpose 18": PEOPLE_18,
    "openpose 25": {"people": [{"pose_keypoints_2d": pixels(BODY_25)}]},
    "a list of one picture": [PEOPLE_18],
    "another canvas": {
        "people": [{"pose_keypoints_2d": pixels(PLACES, 1280, 720)}],
        "canvas_width": 1280,
        "canvas_height": 720,
    },
    "parts of the picture": {"people": [{"pose_keypoints_2d": PLACES.ravel().tolist()}]},
}
COCO_FORMS = {
    "one": {"keypoints": coco()},
    "list": [{"keypoints": coco(), "bbox": [1, 2, 3, 4]}],
    "data set": {"images": [{"width": 640, "height": 480}], "annotations": [{"keypoints": coco()}]},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_openpose_gives_the_same_joints(form):
    (pose,) = read_poses(json.dumps(FORMS[form]), (480, 640))
    assert pose.body == pytest.approx(PLACES)
    assert pose.left_hand is pose.right_hand is pose.face is None


@pytest.mark.parametrize("form", COCO_FORMS)
def test_every_form_of_coco_gives_the_same_joints_but_the_neck(form):
    (pose,) = read_poses(json.dumps(COCO_FORMS[form]), (480, 640))
    neck = BODY.index("neck")
    assert np.delete(pose.body, neck, 0) == pytest.approx(np.delete(PLACES, neck, 0))


def test_hands_and_faces_come_along_and_hidden_joints_of_coco_count():
    hand, face = np.full((21, 3), 0.25), np.full((70, 3), 0.5)
    person = {"pose_keypoints_2d": PLACES.ravel().tolist(), "hand_left_keypoints_2d": hand.ravel().tolist()}
    person |= {"hand_right_keypoints_2d": [], "face_keypoints_2d": face.ravel().tolist()}
    (pose,) = read_poses(json.dumps({"people": [person]}), (9, 9))
    assert np.array_equal(pose.left_hand, hand)
    assert pose.right_hand is None
    assert np.array_equal(pose.face, face)
    hidden = [1.0, 5.0, 1] * 16 + [2.0, 5.0, 2]
    (pose,) = read_poses(json.dumps({"keypoints": hidden}), (10, 10))
    assert (pose.body[:, 2] == 1).all()


def test_the_map_shows_the_joints_where_they_are_at_any_size():
    picture = np.zeros((480, 640, 3), np.uint8)
    for resolution in (128, 512):
        control_map = annotate(picture, resolution=resolution, points=json.dumps(PEOPLE_18))
        assert all(at(control_map, joint).any() for joint in PLACES)
    unsure = {"people": [{"pose_keypoints_2d": pixels(PLACES * [1, 1, 0.2])}]}
    assert annotate(picture, resolution=128, points=json.dumps(unsure)).any()
    assert not annotate(picture, resolution=128, points=json.dumps(unsure), seen=0.3).any()


@pytest.mark.parametrize("nobody", [{"people": []}, []])
def test_a_file_without_people_gives_a_black_map(nobody):
    assert not annotate(np.zeros((64, 64, 3), np.uint8), resolution=64, points=json.dumps(nobody)).any()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "points must be JSON: .* got nothing"),
        ("pose.json", "got 'pose.json'"),
        ("[" * 100_000, "points must be JSON"),
        ("3", "a list of people"),
        ('{"people": 3}', "a list of people"),
        ('{"people": [[1, 2, 3]]}', "a list of people"),
        ('{"people": [{}]}', "pose_keypoints_2d must be a list .* for 18 or 25 joints"),
        ('{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', "for 18 or 25 joints"),
        (json.dumps({"people": [{"pose_keypoints_2d": ["1"] * 54}]}), "must be a list"),
        (json.dumps({"people": [{"pose_keypoints_2d": [True] * 54}]}), "must be a list"),
        (json.dumps({"people": [{"pose_keypoints_2d": [float("nan")] * 54}]}), "a number that is none"),
        (json.dumps({"people": [{"pose_keypoints_2d": [10**400] * 54}]}), "a number that is none"),
        (json.dumps({"people": [{"pose_keypoints_2d": [1e300] * 54}]}), "far outside of the picture"),
        (json.dumps({"keypoints": [1] * 50}), "for 17 joints"),
        (json.dumps(PEOPLE_18 | {"canvas_width": 0, "canvas_height": 9}), "must be pixels, got 9 and 0"),
        (json.dumps(PEOPLE_18 | {"canvas_width": "x" * 99, "canvas_height": 9}), "must be pixels"),
    ],
)  # fmt: skip
def test_what_is_no_pose_is_one_short_sentence(text, says):
    with pytest.raises(ValueError, match=says) as error:
        read_poses(text, (48, 64))
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)
