"""Fetching and rendering the art: what goes wrong is said, what is saved comes back."""

import json

import numpy as np
import pytest

from scenes.things import fetch as things_fetch
from scenes.things.art import ART_FILE, build_art, load_art, main, render_icon, save_art
from scenes.things.fetch import check_sum, fetch, icons_file
from scenes.things.words import read_table, styles
from tests.small_art import small_art

STYLES = styles("scenes")
PACKAGES = [row["package"] for row in read_table("packages")]


def test_saved_art_comes_back_whole(tmp_path):
    sprites = small_art()
    save_art(sprites, tmp_path / ART_FILE)
    for one, again in zip(sprites, load_art(tmp_path), strict=True):
        assert (one.word, one.style, one.icon) == (again.word, again.style, again.icon)
        assert one.anatomy.rim == again.anatomy.rim
        assert np.array_equal(one.pixels, again.pixels)
        assert one.anatomy.body == pytest.approx(again.anatomy.body)
        assert all(np.allclose(a, b) for a, b in zip(one.anatomy.strokes, again.anatomy.strokes, strict=True))


def test_art_that_was_never_made_says_how(tmp_path):
    with pytest.raises(FileNotFoundError, match="make it by `python -m scenes.things"):
        load_art(tmp_path)


def test_without_npm_the_missing_packages_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(things_fetch.shutil, "which", lambda name: None)
    icons_file(tmp_path, STYLES[0]).write_text("{}")
    assert main(["--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "no npm" in said
    assert all(f"@iconify-json/{style}@" in said for style in PACKAGES[1:])
    assert f"{STYLES[0]}@" not in said


def test_a_package_of_another_sum_is_refused(tmp_path):
    package = tmp_path / "package.tgz"
    package.write_bytes(b"something else")
    with pytest.raises(ValueError, match="it is not the package that we know"):
        check_sum(package, "0" * 64)


def test_nothing_is_fetched_twice(tmp_path, monkeypatch):
    for style in PACKAGES:
        icons_file(tmp_path, style).write_text("{}")
    monkeypatch.setattr(things_fetch, "_pack", lambda *given: pytest.fail("asked npm"))
    assert fetch(tmp_path) == []


def test_icons_that_are_gone_are_named(tmp_path):
    for style in STYLES:
        icons_file(tmp_path, style).write_text(json.dumps({"icons": {}, "width": 8, "height": 8}))
    with pytest.raises(ValueError, match=r"noto: airplane \(airplane\)"):
        build_art(tmp_path)


def test_an_icon_wider_than_high_is_not_stretched():
    pytest.importorskip("resvg_py")
    package = {"icons": {"bar": {"body": '<rect width="16" height="8" fill="#f00"/>', "width": 16}},
               "width": 8, "height": 8}  # fmt: skip
    rgba = render_icon(package, "bar", 32)
    assert rgba.shape == (32, 32, 4)
    assert (rgba[8:24, :, 3] == 255).all()
    assert rgba[16, 16].tolist() == [255, 0, 0, 255]
    assert not rgba[:7, :, 3].any()
