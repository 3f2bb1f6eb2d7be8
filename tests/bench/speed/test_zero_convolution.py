"""Zero convolutions learn from the first step on, what lies in front of them one step later each."""

import re
from pathlib import Path

import pytest
import torch

from bench.speed.zero_convolution import controlnet, main, single

DOCUMENT = Path(__file__).parents[3] / "docs/zero-convolution.md"
TABLE_ROW = re.compile(r"^\| (?P<name>.*?) \| (?P<cells>[\de0. |+-]+) \|$", re.MULTILINE)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def learning(gradients):
    """The steps at which each group of layers had a gradient."""
    return {name: [step for step, one in enumerate(steps) if one] for name, steps in gradients.items()}


def test_a_zero_convolution_gets_a_gradient_at_once_and_what_is_in_front_of_it_one_step_later():
    gradients, _ = single()
    assert learning(gradients) == {"zero convolution": [0, 1, 2], "convolution in front": [1, 2]}


def test_its_gradient_is_the_documented_formula():
    _, error = single()
    assert error < 1e-6  # fp32 sums of 128 products of about 0.05


def test_a_control_branch_wakes_up_layer_by_layer():
    zeros, copy, hint_zeros, hint = learning(controlnet()).values()
    assert zeros == [0, 1, 2]
    assert copy == hint_zeros == [1, 2]
    assert hint == [2]


def test_the_document_shows_the_same_zeros_as_the_script(capsys):
    assert main([]) == 0
    printed, shown = capsys.readouterr().out, DOCUMENT.read_text()
    zeros = [
        {match["name"]: [cell.strip() == "0" for cell in match["cells"].split("|")] for match in found}
        for found in (TABLE_ROW.finditer(printed), TABLE_ROW.finditer(shown))
    ]
    assert len(zeros[0]) == 6
    assert zeros[0] == zeros[1]
