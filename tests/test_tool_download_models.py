"""`list` and `get` do what they say, and say in one sentence what they cannot do."""

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import tool_download_models as tool
from tests.hub_server import hub_on_this_machine
from tools.download import catalogue
from tools.download.catalogue import CONTROLS_11, PUBLISHED, PublishedFile

ROOT = Path(__file__).parents[1]
CONTENT = b"weights " * 25_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SMALL = PublishedFile("a/b", "small.pth", 0.0, len(CONTENT), SHA256, "models/x.yaml")


@pytest.fixture(autouse=True)
def _catalogue(monkeypatch, tmp_path):
    """Two small files are published, and the environment asks for nothing."""
    monkeypatch.setitem(catalogue.PUBLISHED, "small", SMALL)
    monkeypatch.setitem(catalogue.PUBLISHED, "other", replace(SMALL, path="other.pth"))
    for name in ("HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch):
    """Has both files."""
    with hub_on_this_machine(monkeypatch) as server:
        server.files |= {"small.pth": CONTENT, "other.pth": CONTENT}
        yield server


@pytest.fixture
def run(capsys):
    """(exit code, stdout, stderr) of a command."""

    def run(*words):
        code = tool.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def is_one_line(text):
    return re.fullmatch(r"[^\n]+\n", text) and "Traceback" not in text


def test_files_come_by_name_into_models(hub, run, tmp_path):
    code, out, err = run("get", "small", "other", "--mirror", f"{hub.address}/")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"models/{name}.pth: fetched, its sha256 is right; it goes with models/x.yaml"
        for name in ("small", "other")
    ]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["other.pth", "small.pth"]
    again = run("get", "small", "--mirror", hub.address)[1]
    assert again.startswith("models/small.pth: there already, its sha256")
    assert hub.fetched() == 2


def test_list_shows_every_file_and_what_is_there(run, tmp_path):
    target = tmp_path / "weights" / CONTROLS_11["tile"].name
    target.parent.mkdir()
    target.with_name(f"control_v11p_sd15_canny.pth.{'0' * 64}.part").write_bytes(bytes(1000))
    target.write_bytes(b"short")
    code, out, _ = run("list", "--dest", target.parent)
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert code == 0
    assert set(lines) == set(PUBLISHED) - {"small", "other"}
    assert all(PUBLISHED[name].name in line for name, line in lines.items())
    assert "sha256  0% there" in lines["canny"]
    assert lines["tile"].endswith("another file")
    assert lines["mlsd"].endswith("server")
    with target.open("r+b") as file:
        file.truncate(CONTROLS_11["tile"].size)
    assert re.search(r"tile .* there\n", run("list", "--dest", target.parent)[1])


def test_help_and_list_answer_without_heavy_packages():
    code = (
        "import sys, tool_download_models as tool\n"
        "assert tool.main(['list']) == 0\n"
        "assert not {'torch', 'httpx', 'huggingface_hub', 'numpy', 'tqdm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_a_dead_link_keeps_no_other_file_back(hub, run, tmp_path):
    del hub.files["small.pth"]
    code, out, err = run("get", "small", "other", "--mirror", hub.address, "--dest", "weights")
    assert code == 2
    assert out.startswith("weights/other.pth: fetched")
    assert is_one_line(err)
    assert err.startswith("small.pth: 127.0.0.1")
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["other.pth"]


def test_a_server_that_is_not_there_is_asked_once(hub, run):
    code, out, err = run("get", "small", "other", "--mirror", "http://127.0.0.1:1")
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert "does not answer" in err


def test_a_lost_connection_is_one_sentence(hub, run, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cuts = [1000, *[0] * 20]
    code, _, err = run("get", "small", "--mirror", hub.address)
    assert code == 2
    assert is_one_line(err)
    assert "the same command goes on where it ended" in err


def test_the_endpoint_of_the_environment_is_the_mirror(hub, run, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    assert run("get", "small")[0] == 0
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert tool.parse_args(["get", "small"]).mirror == "https://huggingface.co"


def test_wrong_bytes_are_said_and_deleted(hub, run, tmp_path):
    hub.sends["small.pth"] = CONTENT[::-1]
    code, _, err = run("get", "small", "--mirror", hub.address)
    assert code == 2
    assert is_one_line(err)
    assert "it was deleted" in err
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["get", "smal"], "no published file is called 'smal': choose from all, annotators, metrics, canny"),
        (["get", "small", "--mirror", "hf-mirror.com"], "write it like https://hf-mirror.com"),
        (["get", "small", "--mirror", "file:///models"], "no address of a server"),
        (["get", "small", "--mirror", "http://"], "no address of a server"),
        (["get", "small", "--mirror", "http://host/?a=b"], "no address of a server"),
        (["get", "small", "--dest", "taken"], "taken: File exists"),
        (["get", "small", "--dest", "taken/models"], "taken/models: Not a directory"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence(run, words, says):
    Path("taken").write_text("")
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert says in err


def test_the_room_for_all_files_is_checked_first(hub, run, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2 * 10**9}))
    code, _, err = run("get", "small", "canny", "depth", "--mirror", hub.address)
    assert code == 2
    assert is_one_line(err)
    assert "models needs 2757 MiB, but 1907 MiB are free" in err
    assert not hub.asked


def test_a_full_disk_is_said(run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tool, "fetch", full)
    code, _, err = run("get", "small")
    assert code == 2
    assert err == "No space left on device: free some space, then repeat the command\n"


CATALOGUE = f"""
import sys, tool_download_models as tool
from huggingface_hub import constants
from tools.download.catalogue import PUBLISHED, PublishedFile
constants.DOWNLOAD_CHUNK_SIZE, constants.HF_HUB_OFFLINE = 10_000, False
PUBLISHED["small"] = PublishedFile("a/b", "small.pth", 0.0, {SMALL.size}, {SMALL.sha256!r})
sys.exit(tool.main(["get", "small", "--dest", sys.argv[1], "--mirror", sys.argv[2]]))
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to another process")
def test_ctrl_c_stops_and_the_same_command_goes_on(hub, tmp_path, run):
    hub.cuts, hub.stalls = [100_000], True
    command = [sys.executable, "-c", CATALOGUE, str(tmp_path), hub.address]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    part = tmp_path / f"small.pth.{SHA256}.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > 90_000):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert is_one_line(err)
    assert "the same command goes on from there" in err
    assert not (tmp_path / "small.pth").exists()
    hub.stalls = False
    assert run("get", "small", "--dest", tmp_path, "--mirror", hub.address)[0] == 0
    assert hub.ranges == [None, "bytes=100000-"]
    assert (tmp_path / "small.pth").read_bytes() == CONTENT
