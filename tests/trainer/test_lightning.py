"""What a run shows: images in their places, numbers in the log, and weights that do not depend on looking."""

import csv

import numpy as np
import pytest
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from cldm.log_images import SampleSettings
from cldm.logger import GAP, ImageLogger
from ldm.image import read_image, write_png
from tests.small_runs import SIDE, Run, small_data
from tests.trainer.test_module import assert_equal_to_the_bit
from trainer.lightning import ThroughputLogger, ValidationImages, read_validation

QUICK = {"ddim_steps": 1, "unconditional_guidance_scale": 2.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("fill50k"), 4)


def test_images_and_numbers_come_and_change_no_weight(data, tmp_path):
    hint = (data[0]["hint"] * 255).astype(np.uint8)
    shown = [
        ImageLogger(2, 2, increase_log_steps=False, log_images_kwargs=QUICK),
        ValidationImages([("a", hint), ("b", hint)], 2, 2, SampleSettings(steps=1)),
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


def test_one_prompt_or_one_image_serves_all(tmp_path):
    paths = [write_png(tmp_path / f"{n}.png", np.full((80, 64, 3), n, np.uint8)) for n in (1, 2)]
    first = read_validation(["a"], paths, 64)
    assert [(prompt, hint.shape, hint.max()) for prompt, hint in first] == [
        ("a", (64, 64, 3), 1), ("a", (64, 64, 3), 2),
    ]  # fmt: skip
    second = read_validation(["a", "b"], paths[:1], 64)
    assert [(prompt, hint.max()) for prompt, hint in second] == [("a", 1), ("b", 1)]
    with pytest.raises(ValueError, match="3 validation prompts for 2 validation images"):
        read_validation(["a", "b", "c"], paths, 64)
