"""A folder of the hub comes with one form of its weights, whole or not at all."""

import hashlib

import pytest

from tests.hub_server import hub_on_this_machine
from tools.download import fetch as module
from tools.download.catalogue import PublishedFile
from tools.download.fetch import DownloadError, NoAnswerError, fetch
from tools.download.folders import fetch_folder, part_of

PUBLISHED = PublishedFile("someone/network", "", folder="annotators")
WEIGHTS = b"tensors " * 5000
NEEDED = {"config.json": b"{}", "preprocessor_config.json": b"{ }", "model.safetensors": WEIGHTS}
OTHERS = {
    "pytorch_model.bin": b"pickled",
    "tf_model.h5": b"tf",
    "README.md": b"#",
    "model.safetensors.index.json": b"[]",
}


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    with hub_on_this_machine(monkeypatch) as server:
        server.files |= NEEDED | OTHERS
        yield server


@pytest.fixture
def get(hub, tmp_path):
    return lambda: fetch_folder(PUBLISHED, tmp_path / "network", hub.address)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_texts_and_one_form_of_the_weights_come(get, tmp_path):
    assert get() == (True, "sha256")
    assert contents(tmp_path / "network") == NEEDED
    assert [path.name for path in tmp_path.iterdir()] == ["network"]


def test_pickled_weights_come_where_there_are_no_others(hub, get, tmp_path):
    del hub.files["model.safetensors"]
    get()
    assert "pytorch_model.bin" in contents(tmp_path / "network")


def test_a_folder_that_is_there_is_checked_and_completed(hub, get, tmp_path):
    get()
    fetched = hub.fetched()
    assert get() == (False, "sha256")
    assert hub.fetched() == fetched
    (tmp_path / "network" / "config.json").unlink()
    assert get() == (True, "sha256")
    (tmp_path / "network" / "model.safetensors").write_bytes(WEIGHTS[::-1])
    with pytest.raises(DownloadError, match="is another file, with the sha256"):
        get()


def test_a_folder_appears_only_when_all_of_it_is_there(hub, get, tmp_path):
    hub.cuts = [2, 3, 1000, *[0] * 20]
    with pytest.raises(DownloadError, match="the same command goes on where it ended"):
        get()
    assert not (tmp_path / "network").exists()
    assert part_of(tmp_path / "network").is_dir()
    hub.cuts, hub.ranges = [], []
    get()
    assert hub.ranges == ["bytes=1000-"]
    assert contents(tmp_path / "network") == NEEDED


def test_a_repository_without_weights_is_said(hub, get):
    hub.files = {"config.json": b"{}"}
    with pytest.raises(DownloadError, match="someone/network holds no weights that can be read here"):
        get()


def test_nobody_there_is_said(tmp_path, hub):
    with pytest.raises(NoAnswerError, match="does not answer"):
        fetch_folder(PUBLISHED, tmp_path / "network", "http://127.0.0.1:1")


# Files that lie somewhere else in the web, known by the first digits of their sha256

DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def web(hub, monkeypatch):
    """A file of an address, and the address."""
    monkeypatch.setattr(module, "ON_WEB", "http://")
    hub.files["/release/weights.pth"] = WEIGHTS
    return PublishedFile(f"{hub.address}/release", "weights.pth", sha256=DIGEST[:8], folder="metrics")


def test_a_file_of_the_web_comes_from_its_own_address(web, tmp_path):
    assert fetch(web, tmp_path / "w.pth", "http://127.0.0.1:1") == (True, "sha256")
    assert (tmp_path / "w.pth").read_bytes() == WEIGHTS
    assert fetch(web, tmp_path / "w.pth", "http://127.0.0.1:1") == (False, "sha256")


def test_a_file_of_the_web_whose_digits_differ_is_deleted(web, hub, tmp_path):
    hub.files["/release/weights.pth"] = WEIGHTS[::-1]
    with pytest.raises(DownloadError, match="it was deleted, fetch it in a browser"):
        fetch(web, tmp_path / "w.pth", hub.address)
    assert not list(tmp_path.iterdir())


def test_a_file_of_the_web_that_is_gone_is_said(web, hub, tmp_path):
    del hub.files["/release/weights.pth"]
    with pytest.raises(DownloadError, match=r"does not give it \(HTTP 404\): fetch it in a browser"):
        fetch(web, tmp_path / "w.pth", hub.address)
