"""Pictures of the page are taken by a browser that is there, or it is said what is missing."""

import shutil

import pytest

from app import screenshots, server


@pytest.mark.parametrize("missing", ["chromium", "playwright"])
def test_without_a_browser_it_is_one_sentence_and_no_server(missing, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None if missing == "chromium" else name)
    monkeypatch.setattr(screenshots, "find_spec", lambda name: None if missing == name else name)
    monkeypatch.setattr(server, "running", None)
    assert screenshots.main(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert "install" in said
    assert missing in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())
