"""What a run shows: grids in their places, numbers in the log, and weights that do not depend on looking."""

import csv
import inspect

import numpy as np
import pytest
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from cldm.logger import GAP, ImageLogger, image_grid
from ldm.image import read_image, write_png
from scenes.fill50k import Recipe, make_dataset
from tests.small_runs import SIDE, Run
from tests.trainer.test_module import assert_equal_to_the_bit
from trainer.callbacks import ThroughputLogger, Validation, ValidationImages, read_validation
from trainer.data.dataset import ControlDataset, Transform

QUICK = {"ddim_steps": 1, "unconditional_guidance_scale": 2.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fill50k")
    make_dataset(folder, 4, Recipe(size=SIDE))
    return ControlDataset(folder, Transform(SIDE))


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


def test_pictures_and_numbers_come_and_change_no_weight(data, tmp_path):
    hint = (data[0]["hint"] * 255).astype(np.uint8)
    shown = [
        ImageLogger(2, 2, increase_log_steps=False, log_images_kwargs=QUICK),
        ValidationImages(Validation(("a", "b"), (hint, hint), count=2, steps=1), every=2),
        ThroughputLogger(2),
    ]
    loggers = [TensorBoardLogger(tmp_path / "a", "logs"), CSVLogger(tmp_path / "a", "csv")]
    run = Run(data, tmp_path / "a", max_steps=4, callbacks=shown, logger=loggers, log_every_n_steps=1).go()
    blind = Run(data, tmp_path / "b", max_steps=4).go()
    assert_equal_to_the_bit(run.state(), blind.state())

    grids = sorted((tmp_path / "a/image_log/train").iterdir())
    assert [path.name[:14] for path in grids] == ["grid_gs-000002", "grid_gs-000004"]
    wide, high = 4 * SIDE + 3 * GAP, 2 * SIDE + GAP
    assert read_image(grids[0]).shape == (high, wide, 3)
    grids = sorted((tmp_path / "a/image_log/validation").iterdir())
    assert [path.name for path in grids] == ["grid_gs-000002.png", "grid_gs-000004.png"]
    assert not np.array_equal(*map(read_image, grids))
    control = read_image(grids[0])[:SIDE, :SIDE].astype(int)
    assert np.abs(control - hint).max() <= 1

    assert list((tmp_path / "a/logs").rglob("events.out.tfevents.*"))
    (table,) = (tmp_path / "a/csv").rglob("metrics.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 4
    for name in ("loss", "lr", "images_per_second", "peak_memory_gb"):
        assert all(np.isfinite(float(row[name])) for row in rows)
    assert float(rows[0]["peak_memory_gb"]) > 0.1


def test_a_grid_holds_each_picture_in_its_place():
    columns = [torch.full((2, 3, 4, 4), value) for value in (-1.0, 0.0, 3.0)]
    columns[1][1] = 0.5
    grid = image_grid(columns)
    assert grid.shape == (3, 2 * 4 + GAP, 3 * 4 + 2 * GAP)
    assert [grid[0, 0, x].item() for x in (0, 4 + GAP, 8 + 2 * GAP)] == [-1, 0, 1]
    assert grid[0, -1, 4 + GAP] == 0.5
    assert grid[0, 4, 0] == 1
    assert image_grid(columns, clamp=False).max() == 3


def test_one_prompt_or_one_picture_serves_all(tmp_path):
    paths = [write_png(tmp_path / f"{n}.png", np.full((80, 64, 3), n, np.uint8)) for n in (1, 2)]
    prompts, hints = read_validation(["a"], paths, 64)
    assert prompts == ("a", "a")
    assert [hint.shape for hint in hints] == [(64, 64, 3)] * 2
    assert [hint.max() for hint in read_validation(["a", "b"], paths[:1], 64)[1]] == [1, 1]
    with pytest.raises(ValueError, match="3 validation prompts for 2 validation images"):
        read_validation(["a", "b", "c"], paths, 64)
