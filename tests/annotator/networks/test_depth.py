import numpy as np

from annotator.networks.depth import normals_of, to_map


def test_near_is_white_and_far_is_black_whatever_the_unit():
    ramp = np.tile(np.linspace(3, 40, 64, dtype=np.float32), (64, 1))
    grey = to_map(ramp)
    assert (grey[:, 0] == 0).all()
    assert (grey[:, -1] == 255).all()
    assert np.array_equal(grey, to_map(1000 * ramp - 7))
    assert (np.diff(grey.astype(int), axis=1) >= 0).all()


def test_a_plane_has_no_depth_and_faces_the_front():
    plane = np.full((32, 32), 5, np.float32)
    assert not to_map(plane).any()
    assert (normals_of(plane) == (127, 127, 255)).all()


def test_what_comes_nearer_to_the_right_faces_the_left_and_downwards_the_top():
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    left = normals_of(ramp, background=0)[32, 32]
    top = normals_of(ramp.T.copy(), background=0)[32, 32]
    assert left[0] > 200 > 128 >= left[1]
    assert top[1] > 200 > 128 >= top[0]


def test_the_background_faces_the_front():
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    normals = normals_of(ramp, background=0.5)
    assert (normals[:, :30] == (127, 127, 255)).all()
    assert (normals[:, 34:-1, 0] > 128).all()
