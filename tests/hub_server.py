"""A stand-in for the model hub on this machine."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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


@contextmanager
def hub_on_this_machine(monkeypatch):
    """A running `Hub` that huggingface_hub takes for the real one."""
    from huggingface_hub import constants

    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
