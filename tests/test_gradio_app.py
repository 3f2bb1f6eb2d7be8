"""The command gradio_app.py: its flags, its one-sentence mistakes, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gradio_app
from app.serve_flags import PageFlags, parse_flags
from app.server import check_page_flags
from common.shell import INTERRUPTED, USER_ERROR

SCRIPT = Path(gradio_app.__file__)


def test_help_answers_without_anything_heavy():
    code = (
        "import sys, runpy; sys.argv = ['gradio_app.py', '--help']\n"
        "try: runpy.run_path('gradio_app.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'gradio', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stderr
    for flag in ("--config", "--weights", "--quantized", "--branch", "--lora", "--device", "--dtype"):
        assert flag in done.stdout
    for flag in (
        "--save-memory",
        "--model",
        "--listen",
        "--port",
        "--share",
        "--auth",
        "--lang",
        "--max-queue",
    ):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--auth", "me"], "USER:PASSWORD"),
        (["--auth", "me:"], "USER:PASSWORD"),
        (["--max-queue", "0"], "at least 1"),
        (["--port", "70000"], "--port"),
        (["--model", "small"], "NAME=YAML"),
        (["--model", "../x=models/tiny.yaml"], "NAME=YAML"),
        (["--model", "small=nowhere.yaml"], "nowhere.yaml is not there"),
        (["--branch", "nowhere.pth"], "nowhere.pth"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_sentence(flags, words, capsys, monkeypatch):
    monkeypatch.chdir(SCRIPT.parent)
    flags = flags if "--port" in flags else [*flags, "--port", "0"]
    assert gradio_app.main(flags) == USER_ERROR
    out, err = capsys.readouterr()
    assert words in err
    assert (out, err.count("\n")) == ("", 1)


def test_a_port_in_use_is_said_before_anything_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        start = time.perf_counter()
        assert gradio_app.main(["--port", str(port)]) == USER_ERROR
    assert time.perf_counter() - start < 1
    assert capsys.readouterr().err.startswith(f"port {port} cannot be used")


@pytest.mark.parametrize("flag", ["--listen", "--share"])
def test_who_opens_the_page_to_others_without_a_password_is_warned(flag, capsys):
    check_page_flags(parse_flags([flag, "--port", "0"], "").page)
    assert "--auth" in capsys.readouterr().err
    check_page_flags(parse_flags([flag, "--port", "0", "--auth", "me:secret"], "").page)
    check_page_flags(PageFlags(port=0))
    assert not capsys.readouterr().err


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_and_leaves_nothing_behind(kind, tmp_path):
    """While it still loads, and when it serves, are the same to whoever presses Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--port", "0"], cwd=SCRIPT.parent, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    if kind == signal.SIGTERM:
        assert "http://127.0.0.1:" in process.stdout.readline()
    else:
        while not list(tmp_path.iterdir()):
            time.sleep(0.02)
    start = time.perf_counter()
    process.send_signal(kind)
    _, err = process.communicate(timeout=20)
    assert time.perf_counter() - start < 2
    assert process.returncode == INTERRUPTED
    assert "stopped" in err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("featherweight")]
