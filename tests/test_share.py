"""`from share import *`, the first line of published scripts, obeys config.save_memory."""

import runpy
from pathlib import Path

import pytest

import config
from ldm.modules.attention import CrossAttention, slice_attention

SHARE = Path(__file__).parents[1] / "share.py"


@pytest.fixture(autouse=True)
def _unsliced():
    slice_attention(None)
    yield
    slice_attention(None)


@pytest.mark.parametrize(("save_memory", "rows"), [(True, 1), (False, None)])
def test_sharing_slices_attention_only_to_save_memory(monkeypatch, save_memory, rows):
    monkeypatch.setattr(config, "save_memory", save_memory)
    runpy.run_path(str(SHARE))
    assert CrossAttention.slice_rows == rows


def test_memory_is_not_saved_unless_asked_for():
    assert config.save_memory is False


def test_the_doors_stay_doors():
    assert all(len(SHARE.with_name(name).read_text().splitlines()) <= 8 for name in ("share.py", "config.py"))
