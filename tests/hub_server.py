"""A stand-in for the model hub on this machine, as bad as it is told to be."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """Takes repositories and commits, and gives `files` (their bytes by path) under resolve/main,
    or at a path of their own; it lists them as one repository.

    asked: (path, token) of each request that is no HEAD; ranges: what those for files asked for. refuses:
    answers 401. status: by path, in place of a file. cuts: bytes after which the next answers end; stalls:
    they stay silent there instead. sends: bytes by path that come in place of the promised ones. linked:
    whether sha256 and size are told as of a large file; ranged: whether pieces are given.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.files, self.asked, self.ranges, self.refuses = {}, [], [], False
        self.status, self.cuts, self.sends, self.headers = {}, [], {}, {}
        self.stalls, self.linked, self.ranged = False, True, True
        self.stopping = threading.Event()

    def fetched(self):
        """How many answers with a file's bytes were asked for."""
        return len(self.ranges)


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

    def do_HEAD(self):
        self.give_file(head=True)

    def do_GET(self):
        if "/resolve/main/" in self.path or self.path in self.server.files:
            return self.give_file(head=False)
        if "/tree/main" in self.path:
            return self.answer([self.listed(*one) for one in self.server.files.items()])
        return self.answer({"id": "me/branch", "sha": "0" * 40, "siblings": []})

    def listed(self, path, content):
        entry = {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
        if path.endswith((".json", ".txt")):
            return entry
        return entry | {
            "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        }

    def give_file(self, *, head):
        hub, path = self.server, self.path.split("/resolve/main/")[-1]
        if not head:
            hub.asked.append((self.path, self.headers.get("Authorization")))
            hub.ranges.append(self.headers.get("Range"))
        status = 401 if hub.refuses else hub.status.get(path, 200 if path in hub.files else 404)
        if status != 200:
            return self.start(status, {"Content-Length": "0"} | hub.headers)
        content, start = hub.files[path], 0
        sha256 = hashlib.sha256(content).hexdigest()
        headers = {"ETag": '"tag"', "X-Repo-Commit": "0" * 40} | hub.headers
        if hub.linked:
            headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        content = content if head else hub.sends.get(path, content)
        if hub.ranged and (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.start(206 if start else 200, headers | {"Content-Length": str(len(content) - start)})
        if not head:
            self.wfile.write(content[start:][: hub.cuts.pop(0) if hub.cuts else None])
            if hub.stalls:
                hub.stopping.wait()
        return None

    def start(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, content, code=200):
        data = json.dumps(content).encode()
        self.start(code, {"Content-Type": "application/json", "Content-Length": str(len(data))})
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def hub_on_this_machine(monkeypatch):
    """A running `Hub` that huggingface_hub takes for the real one, whatever the environment says."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    close_session()  # it would keep the proxies
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.stopping.set()
        server.shutdown()
