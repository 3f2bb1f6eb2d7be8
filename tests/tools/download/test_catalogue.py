"""The catalogue names what this program can use, and says of each file only what can be true."""

import re
from collections import Counter
from pathlib import Path

import pytest

from annotator.registry import DETECTORS
from cldm.controls import CONTROLS
from tools.download.catalogue import (
    ANNOTATORS,
    BASES,
    CONTROLS_10,
    CONTROLS_11,
    METRICS,
    PUBLISHED,
    find_files,
)

ROOT = Path(__file__).parents[3]
every_file = pytest.mark.parametrize("one", PUBLISHED.values(), ids=PUBLISHED)


def test_the_14_controls_have_their_names_and_files():
    stems = {control.stem: name for name, control in reversed(CONTROLS.items()) if control.stem}
    assert {one.name: name for name, one in CONTROLS_11.items()} == {
        f"{stem}.pth": name for stem, name in stems.items()
    }
    assert len(CONTROLS_11) == 14


def test_the_controls_of_1_0_are_there_under_their_own_names():
    assert set(CONTROLS_10) == {control.stem_10 for control in CONTROLS.values() if control.stem_10}


@every_file
def test_a_file_is_described_as_it_can_be(one):
    assert bool(one.config) != bool(one.folder)
    assert (ROOT / one.config).is_file() or one.folder in ("annotators", "metrics")
    assert one.sha256 is None or re.fullmatch("[0-9a-f]{64}|[0-9a-f]{8}", one.sha256)
    assert one.size is None or round(one.size / 1e9, 2) == one.gigabytes
    if one.gigabytes is not None:
        assert one.can_have(one.max_bytes - (0 if one.size else 1))
        assert not one.can_have(one.max_bytes + 1)
    assert re.fullmatch(r"(https://)?[\w./-]+/[\w.-]+|pypi:[\w-]+==[\d.]+", one.repository)


def test_no_two_files_share_a_checksum_or_a_name():
    for values in ((one.sha256 for one in PUBLISHED.values()), (one.name for one in PUBLISHED.values())):
        assert set(Counter(filter(None, values)).values()) == {1}


def test_weights_that_only_detectors_or_metrics_take_have_folders_of_their_own():
    assert {one.folder for one in ANNOTATORS.values()} == {"annotators"}
    assert {one.folder for one in METRICS.values()} == {"metrics"}
    assert find_files(["annotators"]) == ANNOTATORS
    assert find_files(["metrics"]) == METRICS


@pytest.mark.parametrize("name", [name for name, one in DETECTORS.items() if one.load])
def test_what_a_detector_says_to_get_is_what_it_needs(name):
    detector = DETECTORS[name]
    files = find_files(detector.command.split(" get ")[1].split())
    assert sorted(one.place.as_posix() for one in files.values()) == sorted(
        f"annotators/{one}" for one in detector.weights
    )


def test_control_files_differ_in_length_as_their_names_do():
    """torch.save writes the name once for each of 342 records into the directory at the end."""
    lengths = {len(one.name): one.size for one in CONTROLS_11.values() if one.size}
    (shortest, size), *others = sorted(lengths.items())
    assert len(others) >= 3
    assert all(other == size + 342 * (length - shortest) for length, other in others)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("depth", "depth"),
        ("control_v11f1p_sd15_depth", "depth"),
        ("control_v11f1p_sd15_depth.pth", "depth"),
        ("control_sd15_hed", "control_sd15_hed"),
        ("v1-5-pruned", "sd15"),
        ("v1-5-pruned.ckpt", "v1-5-pruned.ckpt"),
        ("v2-1_768-ema-pruned.safetensors", "sd21-768"),
        ("hed_bsds500", "hed"),
        ("scannet.pt", "bae"),
        ("Depth-Anything-V2-Small-hf", "depth_anything_v2"),
        ("alexnet-owt-7be5be79.pth", "alexnet"),
    ],
)
def test_a_file_is_found_by_each_of_its_names(alias, name):
    assert find_files([alias, alias]) == {name: PUBLISHED[name]}


def test_all_are_the_14_controls_and_names_add_up():
    assert find_files(["all"]) == CONTROLS_11
    assert set(find_files(["sd21", "tile", "all"])) == {"sd21", *CONTROLS_11}
    assert find_files(BASES) == BASES


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'cany': choose from all, annotators, metrics, canny, .*sd21"):
        find_files(["canny", "cany"])
