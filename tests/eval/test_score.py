"""The command: what pairs, what is refused in one sentence, what is found again."""

import cv2
import numpy as np
import pytest
from PIL import Image

from eval.command import main
from eval.folders import Folders, read_pictures
from eval.metrics.likeness import psnr
from eval.scoring import Scorer, ScoreSettings
from ldm.image import write_png

COUNT, SIDE = 6, 64


def picture(number):
    image = np.full((SIDE, SIDE, 3), (40 * number % 256, 90, 200), np.uint8)
    cv2.circle(image, (20 + 3 * number, 30), 12, (250, 220, 30), -1)
    return image


@pytest.fixture
def sides(tmp_path):
    """Blurred pictures and the sharp ones they should be."""
    for number in range(COUNT):
        write_png(tmp_path / "truth" / f"{number}.png", picture(number))
        write_png(tmp_path / "made" / f"{number}.png", cv2.GaussianBlur(picture(number), (0, 0), 1))
    return tmp_path / "made", tmp_path / "truth"


@pytest.fixture
def score(tmp_path, capfd):
    """Runs the command: exit code, stdout, stderr."""

    def run(*words):
        places = "--cache", tmp_path / "cache", "--metric-weights", tmp_path / "weights", "--device", "cpu"
        code = main(["score", *map(str, (*words, *places))])
        return code, *capfd.readouterr()

    return run


def scorer(tmp_path, **options):
    return Scorer(ScoreSettings(cache=tmp_path / "cache", device="cpu", batch=2, **options))


def test_values_are_those_of_the_metric_in_the_order_of_names(sides, tmp_path):
    made = [cv2.GaussianBlur(picture(k), (0, 0), 1) for k in range(COUNT)]
    expected = psnr(made, [picture(k) for k in range(COUNT)])
    pictures = read_pictures(Folders(*sides))
    assert pictures.stems == [str(k) for k in range(COUNT)]
    np.testing.assert_allclose(scorer(tmp_path).values(pictures, "psnr"), expected)


def test_a_table_shows_value_interval_and_n(sides, score):
    code, out, _ = score(*sides, "--metrics", "psnr", "colour_error")
    assert code == 0
    psnr_line, colour_line = out.splitlines()
    assert "median PSNR" in psnr_line
    assert " dB  [" in psnr_line
    assert "n = 6" in psnr_line
    assert "/255" in colour_line


def test_numbers_become_rows_with_their_origin(sides, score, tmp_path):
    from bench.results import read_rows

    for _ in range(2):  # the same again takes the place of what was there
        assert score(*sides, "--metrics", "psnr", "lpips", "--results", tmp_path / "rows.json")[0] == 0
    rows = read_rows(tmp_path / "rows.json")
    assert list(rows) == ["made"]
    assert list(rows["made"]) == ["median PSNR"]
    found = rows["made"]["median PSNR"]
    assert (found.unit, found.n) == ("dB", COUNT)
    assert found.low <= found.value <= found.high


def test_what_was_computed_is_found_again_by_content(sides, tmp_path, monkeypatch):
    first = scorer(tmp_path).scores(read_pictures(Folders(*sides)), ["ssim"])
    for path in sides[0].iterdir():  # other names, the same pictures
        path.rename(path.with_stem(f"x{path.stem}"))
    for path in sides[1].iterdir():
        path.rename(path.with_stem(f"x{path.stem}"))
    monkeypatch.setattr("eval.scoring.spread", lambda *arguments: pytest.fail("computed again"))
    assert scorer(tmp_path).scores(read_pictures(Folders(*sides)), ["ssim"]) == first


def test_a_killed_run_goes_on_from_its_last_batch(sides, tmp_path):
    (sides[0] / "4.png").write_bytes((sides[0] / "4.png").read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"4.png is damaged"):
        scorer(tmp_path).scores(read_pictures(Folders(*sides)), ["psnr"])
    kept = list((tmp_path / "cache").glob("psnr-*/*.rows"))
    assert len(kept) == 1
    record = 32 + 8
    assert kept[0].stat().st_size == 4 * record
    kept[0].write_bytes(kept[0].read_bytes()[:-5])  # killed while it wrote
    write_png(sides[0] / "4.png", picture(4))
    found = scorer(tmp_path).values(read_pictures(Folders(*sides)), "psnr")
    assert len(found) == COUNT
    assert np.isinf(found[4])


def test_two_processes_compute_what_one_does(sides, tmp_path):
    pictures = read_pictures(Folders(*sides))
    one = scorer(tmp_path / "one", allow_small=True).scores(pictures, ["ssim"])
    two = scorer(tmp_path / "two", allow_small=True, processes=2).scores(pictures, ["ssim"])
    assert two[0].value == pytest.approx(one[0].value, rel=1e-6)
    assert len(list((tmp_path / "two").rglob("*.rows"))) == 2


def test_a_model_is_no_different_from_itself_and_worse_when_it_blurs(sides, tmp_path):
    made, truth = (read_pictures(Folders(side, sides[1])) for side in sides)
    same = scorer(tmp_path).difference(made, made, "ssim")
    worse = scorer(tmp_path).difference(made, truth, "ssim")
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert worse.low <= worse.value <= worse.high < 0
    sets = scorer(tmp_path, allow_small=True).difference(made, truth, "fd_tiny")
    assert sets.low <= sets.high
    assert sets.value > 0


def test_maps_are_compared_by_the_detector_that_made_them(sides, score, tmp_path):
    for number in range(COUNT):
        edges = cv2.Canny(picture(number), 100, 200)
        write_png(tmp_path / "maps" / f"{number}.png", cv2.merge([edges] * 3))
    words = "--maps", tmp_path / "maps", "--control", "canny", "--metrics", "control_f1", "control_miou"
    code, out, _ = score(sides[1], *words)
    assert code == 0
    f1, miou = out.splitlines()
    assert " 1  [1, 1]" in f1
    assert "measured otherwise" in miou


def test_absent_networks_are_named_in_one_line_and_their_columns_stay_empty(sides, score):
    code, out, err = score(*sides, "--metrics", "lpips", "kid")
    assert code == 0
    assert out.count("–") == 2
    command = "tool_download_models.py get alexnet-owt-7be5be79.pth pt_inception-2015-12-05-6726825d.pth"
    assert [command in line for line in err.splitlines()] == [True]


def test_another_file_in_place_of_a_network_is_refused(sides, score, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "pt_inception-2015-12-05-6726825d.pth").write_bytes(b"another")
    code, _, err = score(*sides, "--metrics", "kid")
    assert code == 2
    assert "6726825d0af5" in err
    assert "has the sha256" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--metrics", "fid"], "fewer than 2,048 pictures a side, here are 6: take kid or cmmd"),
        (["--metrics", "psnr", "beauty"], "metric 'beauty' is not known"),
        (["--metrics", "clip_score"], "carry no prompt"),
        (["--metrics", "control_f1"], "give --maps"),
        (["--metrics", "psnr", "--processes", "0"], "both must be 1 or more"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(sides, score, words, said):
    code, out, err = score(*sides, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_folders_that_do_not_pair_name_the_first(sides, score):
    for stem in ("1", "3"):
        (sides[0] / f"{stem}.png").rename(sides[0] / f"other{stem}.png")
    code, _, err = score(*sides, "--metrics", "psnr")
    assert code == 2
    assert "1, 3, other1" in err
    assert score(*sides, "--metrics", "fd_tiny", "--allow-small")[0] == 0


def test_sizes_that_differ_are_brought_together_only_when_asked(sides, score):
    write_png(sides[0] / "2.png", cv2.resize(picture(2), (32, 48)))
    code, _, err = score(*sides, "--metrics", "psnr")
    assert code == 2
    assert "32x48" in err
    assert "--resize" in err
    code, _, err = score(*sides, "--metrics", "psnr", "--resize")
    assert code == 0
    assert "1 pictures were resized" in err


def test_an_empty_folder_and_none_are_mistakes(sides, score, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no pictures" in score(tmp_path / "empty", sides[1])[2]
    assert "is no folder" in score(tmp_path / "nowhere", sides[1])[2]


def test_a_corrupt_picture_is_named_or_counted(sides, score):
    (sides[1] / "3.png").write_bytes((sides[1] / "3.png").read_bytes()[:200])
    code, _, err = score(*sides, "--metrics", "psnr")
    assert code == 2
    assert "3.png" in err
    code, out, err = score(*sides, "--metrics", "psnr", "--skip-corrupt")
    assert code == 0
    assert "1 corrupt" in err
    assert "n = 5" in out


def test_jpeg_on_one_side_and_equal_sides_are_warned_of(sides, score):
    words = "--metrics", "fd_tiny", "--allow-small"
    code, out, err = score(sides[1], sides[1], *words)
    assert code == 0
    assert "same pictures" in err
    assert "biased, n = 6" in out
    for path in sides[0].iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    assert "6 pictures" in score(*sides, *words)[2]
    assert "compression alone" in score(*sides, *words)[2]


def test_a_truth_of_one_picture_is_no_set(sides, score):
    for number in range(1, COUNT):
        (sides[1] / f"{number}.png").unlink()
    code, _, err = score(*sides, "--metrics", "fd_tiny", "--allow-small")
    assert code == 2
    assert "2 pictures or more" in err
