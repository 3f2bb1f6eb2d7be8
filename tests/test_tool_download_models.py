"""`list` and `get` do what they say, and say in one sentence what they cannot do."""

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import tool_download_models as tool
from tests.file_server import FileServer, Reply, forget_proxies
from tools.download import catalogue as published
from tools.download.catalogue import CONTROLS_11, OTHER_HUB, PUBLISHED, Published

ROOT = Path(__file__).parents[1]
CONTENT = b"weights " * 25_000
SMALL = Published("a/b", "small.pth", 0.0, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "models/x.yaml")
GONE, LOCKED = Reply(status=404), Reply(status=401)


@pytest.fixture(autouse=True)
def _catalogue(monkeypatch, tmp_path):
    """Two small files are published, and the environment asks for nothing."""
    monkeypatch.setitem(published.PUBLISHED, "small", SMALL)
    monkeypatch.setitem(published.PUBLISHED, "other", Published(**{**vars(SMALL), "path": "other.pth"}))
    forget_proxies(monkeypatch)
    for name in ("HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def serve():
    with ExitStack() as stack:
        yield lambda *replies: stack.enter_context(FileServer(*replies).running())


@pytest.fixture
def run(capsys):
    """(exit code, stdout, stderr) of a command."""

    def run(*words):
        code = tool.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def is_one_line(text):
    return re.fullmatch(r"[^\n]+\n", text) and "Traceback" not in text


def test_files_come_by_name_into_models(serve, run, tmp_path):
    server = serve(Reply(CONTENT))
    code, out, err = run("get", "small", "other", "--mirror", f"{server.url}/")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"models/{name}.pth: fetched, its sha256 is right; it goes with models/x.yaml"
        for name in ("small", "other")
    ]
    assert [path for path, _ in server.requests] == [
        f"/a/b/resolve/main/{name}.pth" for name in ("small", "other")
    ]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["other.pth", "small.pth"]
    assert run("get", "small", "--mirror", server.url)[1].startswith(
        "models/small.pth: there already, its sha256"
    )
    assert len(server.requests) == 2


def test_list_shows_every_file_and_what_is_there(run, tmp_path):
    target = tmp_path / "weights" / CONTROLS_11["tile"].file
    target.parent.mkdir()
    target.with_name("control_v11p_sd15_canny.pth.part").write_bytes(bytes(1000))
    target.write_bytes(b"short")
    code, out, _ = run("list", "--dest", target.parent)
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert code == 0
    assert set(lines) == set(PUBLISHED) - {"small", "other"}
    assert all(PUBLISHED[name].file in line for name, line in lines.items())
    assert "sha256  0% there" in lines["canny"]
    assert lines["tile"].endswith("another file")
    assert lines["mlsd"].endswith("server")
    with target.open("r+b") as file:
        file.truncate(CONTROLS_11["tile"].size)
    assert re.search(r"tile .* there\n", run("list", "--dest", target.parent)[1])


def test_help_and_list_answer_without_torch_and_httpx():
    code = (
        "import sys, tool_download_models as tool\n"
        "assert tool.main(['list']) == 0\n"
        "assert not {'torch', 'httpx', 'cv2', 'numpy', 'tqdm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_a_dead_link_names_another_mirror_and_keeps_no_other_file_back(serve, run, tmp_path):
    server = serve(GONE, Reply(CONTENT))
    code, out, err = run("get", "small", "other", "--mirror", server.url, "--dest", "weights")
    assert code == 1
    assert out.startswith("weights/other.pth: fetched")
    assert is_one_line(err)
    assert err.startswith("small.pth: 127.0.0.1")
    assert "(HTTP 404): try --mirror https://huggingface.co, or fetch it in a browser" in err
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["other.pth"]


def test_of_the_hub_itself_the_other_hub_is_named(serve, run, monkeypatch):
    monkeypatch.setattr(tool, "HUB", serve(GONE).url)
    assert f"try --mirror {OTHER_HUB}," in run("get", "small", "--mirror", tool.HUB)[2]


def test_a_server_that_is_not_there_is_asked_once(run):
    code, out, err = run("get", "small", "other", "--mirror", "http://127.0.0.1:1")
    assert (code, out) == (1, "")
    assert is_one_line(err)
    assert "does not answer" in err
    assert "--mirror https://huggingface.co" in err


def test_the_token_is_for_the_hub_alone(serve, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    server = serve(LOCKED)
    assert "try --mirror https://huggingface.co" in run("get", "small", "--mirror", server.url)[2]
    assert "Authorization" not in server.requests[0][1]
    monkeypatch.setattr(tool, "HUB", server.url)
    code, _, err = run("get", "small", "--mirror", server.url)
    assert code == 1
    assert is_one_line(err)
    assert f"(HTTP 401): accept the terms at {server.url}/a/b, set HF_TOKEN to a token of yours" in err
    assert server.requests[1][1]["Authorization"] == "Bearer hf_secret"


def test_the_endpoint_of_the_environment_is_the_mirror(serve, run, monkeypatch):
    server = serve(Reply(CONTENT))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert run("get", "small")[0] == 0
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert tool.parse_args(["get", "small"]).mirror == "https://huggingface.co"


def test_wrong_bytes_are_said_and_deleted(serve, run, tmp_path):
    code, _, err = run("get", "small", "--mirror", serve(Reply(CONTENT[::-1])).url)
    assert code == 1
    assert is_one_line(err)
    assert "not the published ones" in err
    assert "try --mirror" in err
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["get", "smal"], "no published file is called 'smal': choose from all, canny"),
        (["get", "small", "--mirror", "hf-mirror.com"], "write it like https://hf-mirror.com"),
        (["get", "small", "--mirror", "file:///models"], "no address of a server"),
        (["get", "small", "--mirror", "http://"], "no address of a server"),
        (["get", "small", "--mirror", "http://host/?a=b"], "no address of a server"),
        (
            ["get", "small", "--dest", "taken"],
            "cannot write to taken (File exists): choose another folder with --dest",
        ),
        (["get", "small", "--dest", "taken/models"], "cannot write to taken/models (Not a directory)"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence(run, words, says):
    Path("taken").write_text("")
    code, out, err = run(*words)
    assert (code, out) == (1, "")
    assert is_one_line(err)
    assert says in err


def test_the_room_for_all_files_is_checked_first(serve, run, monkeypatch):
    server = serve(Reply(CONTENT))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2 * 10**9}))
    code, _, err = run("get", "small", "canny", "depth", "--mirror", server.url)
    assert code == 1
    assert is_one_line(err)
    assert "has 2.00 GB left, and 2.89 GB are still to come" in err
    assert not server.requests


def test_a_full_disk_is_said(run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tool, "download", full)
    code, _, err = run("get", "small")
    assert code == 1
    assert err == "the disk of models is full: free some, then repeat the command to go on\n"


CATALOGUE = f"""
import sys, tool_download_models as tool
from tools.download.catalogue import PUBLISHED, Published
PUBLISHED["small"] = Published("a/b", "small.pth", 0.0, {SMALL.size}, {SMALL.sha256!r})
sys.exit(tool.main(["get", "small", "--dest", sys.argv[1], "--mirror", sys.argv[2]]))
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to another process")
def test_ctrl_c_stops_and_the_same_command_goes_on(serve, tmp_path, run):
    server = serve(Reply(CONTENT, cut=100_000, stall=True), Reply(CONTENT))
    command = [sys.executable, "-c", CATALOGUE, str(tmp_path), server.url]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    part = tmp_path / "small.pth.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size == 100_000):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert is_one_line(err)
    assert "the same command goes on from there" in err
    assert not (tmp_path / "small.pth").exists()
    assert run("get", "small", "--dest", tmp_path, "--mirror", server.url)[0] == 0
    assert server.ranges() == [None, "bytes=100000-"]
    assert (tmp_path / "small.pth").read_bytes() == CONTENT
