"""The upload to the model hub, against a stand-in on this machine."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from cldm.hub import push, write_card
from ldm.image import write_png


class Hub(ThreadingHTTPServer):
    """Takes repositories and commits as the hub does; remembers files and tokens."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.files, self.asked, self.refuses = {}, [], False


class Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.server.refuses:
            return self.answer({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            name = f"me/{json.loads(body)['name']}"
            return self.answer({"url": f"{self.server.address}/{name}", "name": name})
        if "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            made = {"commitUrl": f"{self.server.address}/me/branch/commit/1", "commitOid": "1" * 40}
            return self.answer(made | {"pullRequestUrl": None, "success": True})
        return self.answer({"errors": [], "warnings": []})

    def do_GET(self):
        self.answer({"id": "me/branch", "sha": "0" * 40, "siblings": []})

    def answer(self, content, code=200):
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def result(tmp_path):
    """What a run leaves behind."""
    out = tmp_path / "branch"
    pictures = [write_png(out / f"image_log/train/{n}.png", np.zeros((8, 8, 3), np.uint8)) for n in range(6)]
    (out / "checkpoint-5").mkdir()
    for name in ("control.safetensors", "config.json", "checkpoint-5/state.ckpt"):
        (out / name).write_bytes(name.encode())
    write_card(out, {"base": "v1-5.ckpt", "steps": 5}, pictures)
    return out


def test_card_weights_and_pictures_arrive_and_nothing_else_does(hub, result):
    assert push(result, None, "hf_secret") == f"{hub.address}/me/branch"
    assert set(hub.files) == {
        "README.md", "config.json", "control.safetensors", *(f"images/{n}.png" for n in range(2, 6)),
    }  # fmt: skip
    assert hub.files["control.safetensors"] == b"control.safetensors"
    assert {token for _, token in hub.asked} == {"Bearer hf_secret"}


def test_the_card_is_valid_and_shows_its_pictures(result):
    import yaml

    _, head, body = (result / "README.md").read_text().split("---\n", 2)
    assert "controlnet" in yaml.safe_load(head)["tags"]
    assert "| steps | 5 |" in body
    shown = [line for line in body.splitlines() if line.startswith("![")]
    assert shown == [f"![{n}](images/{n}.png)" for n in range(2, 6)]
    assert all((result / f"images/{n}.png").is_file() for n in range(2, 6))


@pytest.mark.parametrize("name", ["mine", "me/mine"])
def test_a_refusal_is_one_sentence_and_the_result_stays(hub, result, name):
    hub.refuses = True
    with pytest.raises(
        ConnectionError, match=r"^\S*mine was not uploaded, .*; the result stays in .*branch$"
    ):
        push(result, name, "wrong")
    assert (result / "control.safetensors").is_file()
