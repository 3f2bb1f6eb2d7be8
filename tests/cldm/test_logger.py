"""The published callback: its signature, when it draws, and where an image stands in its grid."""

import inspect

import torch

from cldm.logger import GAP, ImageLogger, image_grid


def test_the_published_parameters_keep_their_positions_and_defaults():
    published = {
        "batch_frequency": 2000, "max_images": 4, "clamp": True, "increase_log_steps": True, "rescale": True,
        "disabled": False, "log_on_batch_idx": False, "log_first_step": False, "log_images_kwargs": None,
    }  # fmt: skip
    parameters = list(inspect.signature(ImageLogger).parameters.items())
    assert {name: one.default for name, one in parameters} == published
    assert [name for name, _ in parameters] == list(published)


def test_grids_are_due_at_their_steps():
    plain, growing = ImageLogger(10, increase_log_steps=False), ImageLogger(10)
    assert [n for n in range(31) if plain.check_frequency(n)] == [10, 20, 30]
    assert [n for n in range(21) if growing.check_frequency(n)] == [1, 2, 4, 8, 10, 20]


def test_a_grid_holds_each_picture_in_its_place():
    columns = [torch.full((2, 3, 4, 4), value) for value in (-1.0, 0.0, 3.0)]
    columns[1][1] = 0.5
    grid = image_grid(columns)
    assert grid.shape == (3, 2 * 4 + GAP, 3 * 4 + 2 * GAP)
    assert [grid[0, 0, x].item() for x in (0, 4 + GAP, 8 + 2 * GAP)] == [-1, 0, 1]
    assert grid[0, -1, 4 + GAP] == 0.5
    assert grid[0, 4, 0] == 1
    assert image_grid(columns, clamp=False).max() == 3
