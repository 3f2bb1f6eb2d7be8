"""Training data of every form gives the same pairs, and the stream of a run can be cut anywhere."""

import json
import shutil
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from torch.utils.data import DataLoader

from cldm.controls import Detection, annotate
from ldm.image import read_image, write_png
from scenes.fill50k import Recipe, make_dataset
from trainer.data.dataset import ControlDataset, SampleStream, ShardedSampler, validate
from trainer.settings import Columns, Transform
from tutorial_dataset import MyDataset

SIDE, COUNT = 64, 5


@pytest.fixture(scope="module")
def fill50k(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fill50k")
    make_dataset(folder, COUNT, Recipe(size=SIDE))
    return folder


def entries(folder):
    return [json.loads(line) for line in (folder / "prompt.json").read_text().splitlines()]


def same(one, other):
    return one["txt"] == other["txt"] and all(np.array_equal(one[k], other[k]) for k in ("jpg", "hint"))


def take(stream, numbers):
    return [stream[number] for number in numbers]


def test_a_sample_is_the_published_one(fill50k):
    dataset = MyDataset(fill50k, Transform(SIDE))
    assert len(dataset) == COUNT
    entry, sample = entries(fill50k)[3], dataset[3]
    assert list(sample) == ["jpg", "txt", "hint"]
    assert sample["txt"] == entry["prompt"]
    np.testing.assert_allclose((sample["jpg"] + 1) * 127.5, read_image(fill50k / entry["target"]), atol=1e-4)
    np.testing.assert_allclose(sample["hint"] * 255, read_image(fill50k / entry["source"]), atol=1e-4)
    batch = next(iter(DataLoader(dataset, batch_size=2)))  # as published scripts do
    assert batch["jpg"].shape == batch["hint"].shape == (2, SIDE, SIDE, 3)


def test_every_form_of_the_same_data_gives_the_same_samples(fill50k, tmp_path):
    lines = entries(fill50k)
    renamed = [
        {"picture": str(fill50k / e["target"]), "map": str(fill50k / e["source"]), "says": e["prompt"]}
        for e in lines
    ]
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text("\n\n".join(json.dumps(e) for e in renamed))
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(renamed))
    for kind in ("target", "source"):
        (tmp_path / "folders" / kind).mkdir(parents=True)
        for e in lines:
            (tmp_path / "folders" / e[kind]).write_bytes((fill50k / e[kind]).read_bytes())
    for e in lines:
        (tmp_path / "folders" / e["target"]).with_suffix(".txt").write_text(e["prompt"] + "\n")
    columns = Columns("picture", "map", "says")
    expected = ControlDataset(fill50k, Transform(SIDE))
    for data, names in ((jsonl, columns), (listed, columns), (tmp_path / "folders", None)):
        got = ControlDataset(data, Transform(SIDE), names)
        assert all(same(a, b) for a, b in zip(got, expected, strict=True)), data


def write_pair(folder, size=(64, 64), hint_size=None, text="a"):
    """One pair whose control image is its image, with a position in every pixel."""
    (folder / "target").mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([rows, columns, rows + columns], axis=2).clip(0, 255).astype(np.uint8)
    write_png(folder / "target/a.png", pixels)
    write_png(
        folder / "source/a.png", pixels if hint_size is None else pixels[: hint_size[1], : hint_size[0]]
    )
    (folder / "prompt.json").write_text(
        json.dumps({"source": "source/a.png", "target": "target/a.png", "prompt": text}) + "\n"
    )
    return folder


@pytest.mark.parametrize(
    "transform",
    [Transform(64), Transform(64, True), Transform(64, False, True), Transform(64, True, True)],
    ids=str,
)
def test_cutting_and_turning_keep_pairs_together(tmp_path, transform):
    stream = SampleStream(ControlDataset(write_pair(tmp_path, (96, 64)), transform), 0)
    seen = set()
    for sample in take(stream, range(20)):
        np.testing.assert_allclose((sample["jpg"] + 1) / 2, sample["hint"], atol=1e-6)
        seen.add(sample["hint"].tobytes())
    places = 20 if transform.random_crop else 1
    assert len(seen) <= places * (2 if transform.flip else 1)
    assert (len(seen) > 1) == (transform.random_crop or transform.flip)


def test_pictures_are_scaled_to_their_short_side_and_cut_in_the_middle(tmp_path):
    dataset = ControlDataset(write_pair(tmp_path, (256, 128)), Transform(64))
    columns = dataset[0]["hint"][0, :, 1] * 255
    assert dataset[0]["jpg"].shape == (64, 64, 3)
    np.testing.assert_allclose([columns[0], columns[-1]], [64.5, 190.5], atol=1)


def test_a_sample_depends_on_the_seed_and_its_number_alone(fill50k):
    transform = Transform(SIDE, flip=True, empty_prompts=0.3)
    first, again = (SampleStream(ControlDataset(fill50k, transform), 7) for _ in range(2))
    assert all(
        same(a, b)
        for a, b in zip(take(first, range(12)), reversed(take(again, range(11, -1, -1))), strict=True)
    )
    other = SampleStream(ControlDataset(fill50k, transform), 8)
    assert not all(same(a, b) for a, b in zip(take(first, range(12)), take(other, range(12)), strict=True))


def test_every_row_comes_once_a_turn_in_changing_order(fill50k):
    stream = SampleStream(ControlDataset(fill50k, Transform(SIDE)), 0)
    turns = [tuple(stream.row(k) for k in range(turn * COUNT, (turn + 1) * COUNT)) for turn in range(4)]
    assert all(sorted(turn) == list(range(COUNT)) for turn in turns)
    assert len(set(turns)) > 1


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_processes_share_the_stream_without_overlap_and_without_gaps(ranks):
    batch, start, batches = 4, 24, 5
    shares = [
        list(islice(ShardedSampler(start, batch, rank, ranks), batch * batches)) for rank in range(ranks)
    ]
    taken = Counter(number for share in shares for number in share)
    assert taken == Counter(range(start, start + ranks * batch * batches))
    for step in range(batches):  # and every step takes the same samples as one process with a larger batch
        together = sorted(n for share in shares for n in share[step * batch : (step + 1) * batch])
        assert together == list(range(start + step * ranks * batch, start + (step + 1) * ranks * batch))


def test_a_share_that_starts_later_is_the_rest_of_the_first(fill50k):
    assert list(islice(ShardedSampler(8, 4), 8)) == list(islice(ShardedSampler(0, 4), 16))[8:]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_that_share_of_prompts_is_empty(fill50k, share):
    stream = SampleStream(ControlDataset(fill50k, Transform(SIDE, empty_prompts=share)), 0)
    empty = sum(stream[k]["txt"] == "" for k in range(60)) / 60
    assert abs(empty - share) < 0.2
    assert empty == share or 0 < share < 1


def test_one_of_several_captions_is_drawn(tmp_path):
    dataset = ControlDataset(write_pair(tmp_path, text=["one", "two"]), Transform(64))
    assert {sample["txt"] for sample in take(SampleStream(dataset, 0), range(20))} == {"one", "two"}
    assert dataset[0]["txt"] == "one"


def line(**changes):
    return json.dumps({"source": "source/a.png", "target": "target/a.png", "prompt": "a"} | changes)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (line() + "\n" + line(target="target/none.png"), r"row 2: there is no file .*none\.png"),
        ("{broken", r"row 1 is no JSON: .* at character 1"),
        ('{"a": 1}', "row 1 has no target or image, only a: name the column"),
        (line(prompt=3), "row 1: the text must be a string or a list of strings, got 3"),
        ("[1]", "row 1 is no JSON object but 1"),
        ("", "has no rows"),
    ],
)
def test_a_bad_list_is_refused_with_its_row(tmp_path, rows, sentence):
    (write_pair(tmp_path) / "prompt.json").write_text(rows)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        ControlDataset(tmp_path, Transform(64))


def test_pairs_of_different_size_and_broken_pictures_are_named(tmp_path):
    dataset = ControlDataset(write_pair(tmp_path, (96, 64), (64, 64)), Transform(64))
    with pytest.raises(ValueError, match=r"row 1: a\.png is 96x64 but its control image a\.png 64x64"):
        dataset[0]
    (tmp_path / "source/a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="row 1: .*is no picture"):
        dataset[0]


def test_folders_must_match(tmp_path):
    with pytest.raises(FileNotFoundError, match="no training data"):
        ControlDataset(tmp_path / "none")
    with pytest.raises(ValueError, match="is no training data: it needs"):
        ControlDataset(tmp_path)
    (write_pair(tmp_path) / "prompt.json").unlink()
    with pytest.raises(ValueError, match=r"a\.png has no caption: there is no .*a\.txt"):
        ControlDataset(tmp_path)
    (tmp_path / "target/a.txt").write_text("a")
    (tmp_path / "source/a.png").unlink()
    with pytest.raises(ValueError, match=r"a\.png has no control image: there is no .*source/a\.png"):
        ControlDataset(tmp_path)


def test_validation_names_the_first_bad_rows(fill50k, tmp_path):
    assert validate(ControlDataset(fill50k, Transform(SIDE))) == []
    good = write_pair(tmp_path)
    (good / "prompt.json").write_text(
        "\n".join([line(), line(source="none.png"), line(prompt=" "), line(target="prompt.json")])
    )
    dataset = ControlDataset(good, Transform(64), check_files=False)
    found = validate(dataset)
    assert [f"row {n}" in sentence for n, sentence in zip((2, 3, 4), found, strict=True)] == [True] * 3
    assert len(validate(dataset, most=2)) == 2


def test_a_list_that_windows_wrote_gives_the_same_pairs(fill50k, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(fill50k, copy)
    rows = [{k: v.replace("/", "\\") for k, v in row.items()} for row in entries(copy)]
    text = "\r\n".join(json.dumps(row) for row in rows)
    (copy / "prompt.json").write_text(text, encoding="utf-8-sig", newline="")
    one, other = MyDataset(fill50k, Transform(SIDE)), MyDataset(copy, Transform(SIDE))
    assert all(same(one[k], other[k]) for k in range(COUNT))


def test_a_caption_of_another_encoding_is_named(tmp_path):
    for name in ("target/0.png", "source/0.png"):
        write_png(tmp_path / name, np.zeros((SIDE, SIDE, 3), np.uint8))
    (tmp_path / "target/0.txt").write_bytes("원".encode("cp949"))
    with pytest.raises(ValueError, match=r"0\.txt is no text in UTF-8"):
        ControlDataset(tmp_path)


def test_a_layer_of_lines_is_a_map_as_generation_takes_it(tmp_path):
    ink = np.zeros((SIDE, SIDE, 4), np.uint8)
    ink[20:24, 10:50] = 255
    write_png(tmp_path / "source/0.png", ink)
    write_png(tmp_path / "target/0.png", np.zeros((SIDE, SIDE, 3), np.uint8))
    (tmp_path / "target/0.txt").write_text("a line")
    hint = ControlDataset(tmp_path, Transform(SIDE))[0]["hint"]
    assert np.array_equal(hint * 255, annotate("canny", ink, SIDE, Detection(preprocess=False)))
