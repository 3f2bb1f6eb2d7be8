"""What anybody may send to a served page: each call is answered in a sentence, and the next one works."""

import base64
import io
import json
import re
import socket
import zlib

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from app.inputs import TEST_IMAGES

CIRCLE = TEST_IMAGES / "circle.png"
GOOD = {"prompt": "red star", "steps": 1}
ROOT = re.escape(str(TEST_IMAGES.parent))
LEAK = re.compile(rf'Traceback|File "|site-packages|{ROOT}|Errno|\b0x[0-9a-f]{{6}}')


@pytest.fixture(scope="module")
def client(served):
    return Client(served.url, verbose=False)


@pytest.fixture(scope="module")
def uploaded(served, client):
    """The path of a good picture that was uploaded."""
    with CIRCLE.open("rb") as file:
        answer = httpx.post(f"{served.url}gradio_api/upload", files={"files": ("circle.png", file)})
    return answer.json()[0]


def file_data(path, **more):
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def upload(served, data, name="a.png"):
    answer = httpx.post(f"{served.url}gradio_api/upload", files={"files": (name, data)})
    return file_data(answer.json()[0], orig_name=name)


def ask(served, call, *data):
    """The last event of a call with raw JSON values: its kind and what it says."""
    body = json.dumps({"data": list(data)})
    url, head = f"{served.url}gradio_api/call/{call}", {"content-type": "application/json"}
    answer = httpx.post(url, content=body, headers=head, timeout=60)
    if answer.status_code != 200:
        return "refused", answer.text
    event = "none", ""
    with httpx.stream("GET", f"{url}/{answer.json()['event_id']}", timeout=60) as stream:
        for line in stream.iter_lines():
            if line.startswith("event:"):
                event = line.removeprefix("event:").strip(), ""
            if line.startswith("data:"):
                event = event[0], line.removeprefix("data:").strip()
    return event


def said(served, call, *data):
    kind, text = ask(served, call, *data)
    assert kind in ("error", "refused"), (kind, text[:200])
    assert not LEAK.search(text), text
    return text


def png_bytes(width, height):
    """A PNG that says it has this size, as a bomb does: rows of zeros press to nothing."""
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, format="PNG")
    return file.getvalue()


def lying_png(width, height):
    """A small PNG whose head says that it is large."""
    data = bytearray(png_bytes(8, 8))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def control(**fields):
    return {**GOOD, "controls": [fields]}


def url_of(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


REQUESTS = {
    "no object": "draw me a star",
    "nothing": None,
    "a list": [GOOD],
    "no prompt": {"steps": 1},
    "an empty prompt": {**GOOD, "prompt": "  "},
    "a prompt that is a number": {**GOOD, "prompt": 5},
    "a prompt that is a list": {**GOOD, "prompt": ["star"]},
    "a novel": {**GOOD, "prompt": "star " * 10_000},
    "half a character": {**GOOD, "prompt": "star \ud800"},
    "NaN steps": {**GOOD, "steps": float("nan")},
    "infinite steps": {**GOOD, "steps": float("inf")},
    "a number of 300 digits": {**GOOD, "steps": 10**300},
    "1e308": {**GOOD, "scale": 1e308},
    "NaN scale": {**GOOD, "scale": float("nan")},
    "half a step": {**GOOD, "steps": 1.5},
    "no steps": {**GOOD, "steps": 0},
    "a million steps": {**GOOD, "steps": 10**6},
    "steps as text": {**GOOD, "steps": "20"},
    "true steps": {**GOOD, "steps": True},
    "a negative seed": {**GOOD, "seed": -1},
    "a huge seed": {**GOOD, "seed": 2**70},
    "a thousand pictures": {**GOOD, "num_samples": 1000},
    "a wall of pixels": {**GOOD, "resolution": 4096},
    "no pixels": {**GOOD, "resolution": 1},
    "an unknown sampler": {**GOOD, "sampler": "../../etc/passwd"},
    "an unknown field": {**GOOD, "__class__": "os.system"},
    "an unknown cut": {**GOOD, "reuse_cut": "inner", "reuse_every": 2},
    "ten thousand controls": {**GOOD, "controls": [{}] * 10_000},
    "four controls": {**GOOD, "controls": [{}] * 4},
    "no list of controls": {**GOOD, "controls": {"control": "canny"}},
    "a control that is a text": {**GOOD, "controls": ["canny"]},
    "an unknown control": control(control="telepathy"),
    "a detector of another control": control(control="canny", detector="drawing"),
    "a detector that is not ready": control(control="softedge", detector="hed"),
    "a branch that is not loaded": control(branch="../secret"),
    "NaN strength": control(strength=float("nan")),
    "a window that ends before it starts": control(start=0.9, end=0.1),
    "an unknown parameter": control(control="canny", params={"__import__": "os"}),
    "a parameter out of range": control(control="canny", params={"low": 1e308}),
    "a parameter that is a list": control(control="canny", params={"low": [1]}),
    "infinite scales": control(scales=[float("inf")] * 13),
    "too few scales": control(scales=[1.0]),
    "scales as text": control(scales="1.0"),
    "guess mode as text": {**GOOD, "guess_mode": "yes"},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_hostile_request_is_answered_in_a_sentence(served, uploaded, name):
    text = said(served, "generate", REQUESTS[name], [file_data(uploaded)], None, None, "")
    assert "something went wrong" not in text


FILES = {
    "the password file": lambda served: file_data("/etc/passwd"),
    "a file of this project": lambda served: file_data(str(CIRCLE)),
    "a way out of the folder": lambda served: file_data("../../../etc/passwd"),
    "a way out of an upload": lambda served: file_data(
        f"{upload(served, b'x')['path']}/../../../../etc/passwd"
    ),
    "the upload folder itself": lambda served: file_data(str(served.page.served.folder)),
    "an address": lambda served: file_data("http://127.0.0.1:1/x.png"),
    "an address of files": lambda served: file_data("file:///etc/passwd"),
    "an address beside the path": lambda served: file_data("/etc/passwd", url="http://127.0.0.1:1/x.png"),
    "a path with a zero": lambda served: file_data("/var/\0.png"),
    "a path that is a number": lambda served: file_data(7),
    "a path without an end": lambda served: file_data("a" * 5000),
    "a text": lambda served: upload(served, b"I am no picture", "a.txt"),
    "a text that says png": lambda served: upload(served, b"I am no picture"),
    "an empty file": lambda served: upload(served, b""),
    "half a picture": lambda served: upload(served, CIRCLE.read_bytes()[:400]),
    "a postscript": lambda served: upload(served, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "an svg": lambda served: upload(served, b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.svg"),
    "a bomb of 400 megapixels": lambda served: upload(served, lying_png(20_000, 20_000)),
    "a long thin picture": lambda served: upload(served, png_bytes(20_000, 20)),
    "one pixel": lambda served: upload(served, png_bytes(1, 1)),
    "a data URL that is no picture": lambda served: url_of(b"I am no picture"),
    "a data URL of an svg": lambda served: url_of(b"<svg/>", "svg+xml"),
    "a data URL of a bomb": lambda served: url_of(lying_png(20_000, 20_000)),
    "a data URL that is cut": lambda served: url_of(CIRCLE.read_bytes())[:99],
    "a bare text": lambda served: "circle.png",
    "a number": lambda served: 3,
    "nothing": lambda served: None,
    "a list in a list": lambda served: [[[]]],
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_picture_is_answered_in_a_sentence(served, name):
    text = said(served, "generate", GOOD, [FILES[name](served)], None, None, "")
    assert "something went wrong" not in text


@pytest.mark.parametrize(
    ("call", "data"),
    [
        ("generate", []),
        ("generate", [GOOD]),
        ("generate", [GOOD, [], None, None, ""]),
        ("generate", [GOOD, "x" * 99, None, None, ""]),
        ("generate", [GOOD, [None] * 10_000, None, None, ""]),
        ("generate", [GOOD, [None], None, None, "../model"]),
        ("generate", [GOOD, [None], None, None, {"a": 1}]),
        ("annotate", [None, None, 128]),
        ("annotate", [None, ["canny"], float("nan")]),
        ("annotate", ["x", "canny", 128]),
        ("compare", [GOOD, [None], ["tiny", "tiny"], None, None]),
        ("compare", [GOOD, [None], ["tiny"], None, None]),
        ("compare", [GOOD, [None], "tiny", None, None]),
        ("models", [1, 2, 3]),
        ("no such call", []),
    ],
)
def test_a_hostile_call_is_answered_in_a_sentence(served, call, data):
    said(served, call, *data)


def nested(depth):
    return [] if depth == 0 else [nested(depth - 1)]


def test_a_deep_request_is_refused(served):
    assert "too many values" in said(served, "generate", nested(200), [None], None, None, "")


def test_a_body_of_a_hundred_megabytes_is_refused(served):
    def endless():
        for _ in range(100):
            yield b"x" * 2**20

    head = "POST /gradio_api/call/generate HTTP/1.1\r\nHost: here\r\nContent-Length: 100000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.page.server_port), timeout=20) as line:
        line.sendall(head.encode())
        assert b" 413 " in line.recv(100)
    url = f"{served.url}gradio_api/call/generate"
    with pytest.raises(httpx.HTTPError):
        httpx.post(url, content=endless(), timeout=30).raise_for_status()


def test_an_upload_of_more_than_20_megabytes_is_refused(served):
    data = np.random.default_rng(0).bytes(21 * 2**20)
    answer = httpx.post(f"{served.url}gradio_api/upload", files={"files": ("a.png", data)}, timeout=60)
    assert answer.status_code == 413


def test_every_function_of_the_page_checks_what_it_is_sent(served, caplog):
    """Private endpoints answer direct HTTP: none runs with values that the page cannot send."""
    ours = {number: fn for number, fn in served.page.fns.items() if fn.fn is not None and fn.name != "pick"}
    for number, fn in ours.items():  # what JavaScript does alone, or Gradio refuses itself, is not ours
        for value in (None, float("nan"), {"path": "/etc/passwd", "meta": {}}, "x", -1, [], 10**300):
            body = {"data": [value] * len(fn.inputs), "fn_index": number, "session_hash": "hostile"}
            answer = httpx.post(
                f"{served.url}gradio_api/run/predict", content=json.dumps(body), timeout=60,
                headers={"content-type": "application/json"},
            )  # fmt: skip
            assert not LEAK.search(answer.text), (fn.name, value)
    faults = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert not faults


def test_nobody_fetches_what_was_not_made_for_them(served):
    for path in ("/etc/passwd", str(CIRCLE), "../../etc/passwd", str(served.page.served.folder)):
        answer = httpx.get(f"{served.url}gradio_api/file={path}")
        assert answer.status_code in (403, 404), path


def test_after_all_this_a_good_request_is_drawn(served, client):
    made = client.predict(request=GOOD, images=[handle_file(CIRCLE)], api_name="/generate")
    assert len(made["images"]) == 1


def test_a_fault_of_the_program_shows_an_id_and_is_logged_under_it(served, client, monkeypatch, caplog):
    def fault(*args):
        raise ZeroDivisionError("secret of the program")

    monkeypatch.setattr("app.api.draw", fault)
    with pytest.raises(Exception, match=r"something went wrong \(([0-9a-f]{8})\)") as caught:
        client.predict(request=GOOD, images=[handle_file(CIRCLE)], api_name="/generate")
    number = str(caught.value).partition("(")[2].rstrip(")")
    assert f"fault {number}" in caplog.text
    assert "secret of the program" in caplog.text
    assert "secret" not in str(caught.value)
