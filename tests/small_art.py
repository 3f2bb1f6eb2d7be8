"""Art for tests: a few drawn icons in place of the packages, which only training needs."""

import cv2
import numpy as np

from scenes.things.art import SIDE, Sprite
from scenes.things.strokes import anatomy
from scenes.things.words import styles

CENTRE = SIDE // 2

STYLES = styles("scenes")


def icon(body=(230, 150, 40), detail=(40, 40, 60)):
    """A disc with a square in it, uint8 [SIDE SIDE 4]."""
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    cv2.circle(pixels, (CENTRE, CENTRE), 50, (*body, 255), -1)
    cv2.rectangle(pixels, (50, 50), (78, 78), (*detail, 255), -1)
    return pixels


def sprite(word, style=STYLES[0], **colours):
    pixels = icon(**colours)
    return Sprite(word, style, word, pixels, anatomy(pixels))


def small_art(words=("cat", "dog", "house")):
    """A sprite for each word in every style."""
    return [sprite(word, style, body=(200, 40 * i, 90)) for word in words for i, style in enumerate(STYLES)]
