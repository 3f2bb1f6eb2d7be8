"""A web server on this machine that serves one file as badly as it is told to."""

import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def forget_proxies(monkeypatch):
    """Requests go straight to the server, whatever the environment says."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@dataclass(frozen=True)
class Reply:
    """How one request is answered.

    cut: bytes after which the connection ends; stall: it stays silent there instead, until the server stops;
    shift: how far from the byte that was asked for a piece begins.
    """

    content: bytes = b""
    status: int = 200
    headers: dict = field(default_factory=dict)
    tag: str | None = '"one"'
    cut: int | None = None
    stall: bool = False
    ranges: bool = True
    shift: int = 0
    if_range: bool = True
    length: bool = True


class FileServer:
    """`requests` holds (path, headers) of each; reply n answers request n, the last one all others."""

    def __init__(self, *replies):
        self.replies, self.requests, self.stopping = list(replies), [], threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def ranges(self):
        """The Range header of each request."""
        return [headers.get("Range") for _, headers in self.requests]

    @contextmanager
    def running(self):
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.stopping.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _handler(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                reply = outer.replies[min(len(outer.requests), len(outer.replies) - 1)]
                outer.requests.append((self.path, dict(self.headers)))
                status, headers, body = answer(reply, self.headers)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: reply.cut])
                self.wfile.flush()
                if reply.stall:
                    outer.stopping.wait()

            def log_message(self, *_):
                pass

        return Handler


def answer(reply, asked):
    """(status, headers, body)."""
    if reply.status != 200:
        return reply.status, reply.headers, b""
    total = len(reply.content)
    headers = {**({"ETag": reply.tag} if reply.tag else {}), **reply.headers}
    found = re.fullmatch(r"bytes=(\d+)-", asked.get("Range", ""))
    same = not reply.if_range or asked.get("If-Range", reply.tag) == reply.tag
    start = int(found[1]) if found and reply.ranges and same else 0
    status = 206 if start else 200
    if start >= total > 0:
        return 416, {"Content-Range": f"bytes */{total}"}, b""
    if start:
        start += reply.shift
        headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
    if reply.length:
        headers["Content-Length"] = str(total - start)
    return status, headers, reply.content[start:]
