"""The recognizer's eye, and its file."""

import cv2
import numpy as np
import pytest
import torch

from cldm.recognizer import SIDE, Recognizer, load_net, see
from trainer.tiny.recognizer import save

WORDS = ("cat", "dog")


def ring(ink, paper, side=200, centre=(60, 70), radius=30):
    page = np.full((side, side, 3), paper, np.uint8)
    cv2.circle(page, centre, radius, ink, 3, cv2.LINE_AA)
    return page


def test_paper_and_chalkboard_place_and_size_look_the_same():
    black = see(ring((0, 0, 0), (255, 255, 255)))
    for other in (
        ring((255, 255, 255), (0, 0, 0)),
        ring((0, 0, 0), (255, 255, 255), centre=(140, 120)),
        ring((20, 20, 20), (240, 240, 240)),
    ):
        assert np.abs(see(other) - black).mean() < 0.02


@pytest.mark.parametrize("size", [(40, 300), (300, 40), (1, 1), (700, 700)])
def test_any_size_becomes_one(size):
    page = np.zeros((*size, 3), np.uint8)
    page[size[0] // 2, size[1] // 2] = 255
    seen = see(page)
    assert seen is None or (seen.shape == (3, SIDE, SIDE) and 0 <= seen.min() <= seen.max() <= 1)


def test_grey_images_are_read_too():
    page = ring((0, 0, 0), (255, 255, 255))
    assert np.allclose(see(page[..., 0]), see(page))


def test_an_empty_page_has_no_name():
    assert see(np.full((50, 50, 3), 200, np.uint8)) is None
    assert Recognizer(WORDS).eval().top(np.full((50, 50, 3), 200, np.uint8)) == []


def test_answers_are_sorted_chances():
    told = Recognizer(WORDS).eval().top(ring((0, 0, 0), (255, 255, 255)))
    assert [word for word, _ in told] != []
    assert sum(chance for _, chance in told) == pytest.approx(1, abs=1e-5)
    assert told[0][1] >= told[1][1]


def test_a_saved_recognizer_answers_the_same(tmp_path):
    torch.manual_seed(0)
    net = Recognizer(WORDS).eval()
    again = load_net(Recognizer, save(net, tmp_path / "recognizer.safetensors"))
    page = ring((0, 0, 0), (255, 255, 255))
    assert again.words == WORDS
    assert dict(again.top(page)) == pytest.approx(dict(net.top(page)), abs=5e-3)
