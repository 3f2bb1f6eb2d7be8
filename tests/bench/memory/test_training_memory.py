"""The table of presets orders them as their names do."""

import json

import pytest
from omegaconf import OmegaConf

from bench.memory.training_memory import CACHED, main
from tests.small_models import SD15, settings
from trainer.presets import PRESETS


@pytest.mark.slow  # ten estimates
def test_smaller_presets_need_less_and_a_cache_less_again(tmp_path, capsys):
    OmegaConf.save(settings(SD15), tmp_path / "small.yaml")
    assert main(["--config", str(tmp_path / "small.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    totals = [found[name]["total"] for name in PRESETS]
    assert totals == sorted(totals, reverse=True)
    assert all(found[name + CACHED]["total"] < found[name]["total"] for name in PRESETS)


def test_measuring_needs_a_card_and_a_model(capsys):
    assert main(["--measure"]) == 2
    assert "needs a CUDA card and --resume-path" in capsys.readouterr().err
