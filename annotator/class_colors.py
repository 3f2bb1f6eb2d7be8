"""The colours of the classes that seg models were trained on: ADE20K's 150, COCO's 133.

`class_colors.tsv` has a line for each, in the order of the networks' outputs. Two classes of ADE20K share a
colour, road and skyscraper, as published.
"""

import csv
from functools import cache
from pathlib import Path

import numpy as np

TABLE = Path(__file__).with_suffix(".tsv")
ADE20K, COCO = "ade20k", "coco"


@cache
def class_names(dataset: str) -> tuple[str, ...]:
    """What the classes of ADE20K or COCO are called."""
    return tuple(row["name"] for row in _rows(dataset))


@cache
def class_colors(dataset: str) -> np.ndarray:
    """The colour of each class of ADE20K or COCO: RGB uint8 [classes 3]."""
    return np.array([[row["red"], row["green"], row["blue"]] for row in _rows(dataset)], np.uint8)


def _rows(dataset: str) -> list[dict[str, str]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file, delimiter="\t") if row["dataset"] == dataset]
