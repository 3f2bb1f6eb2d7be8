"""docs/demo.md: its example runs against a server, and its tables name what there is."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from app.generate_flags import ModelFlags
from app.serve_flags import PageFlags, ServeFlags
from app.server import running

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/demo.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:7860"


def test_the_example_of_a_program_runs(monkeypatch, capsys):
    pytest.importorskip("gradio_client")
    (example,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(ROOT)
    with running(ServeFlags(page=PageFlags(port=0))) as server:
        scope = {}
        exec(compile(example.replace(ADDRESS, server.url.rstrip("/")), "demo.md", "exec"), scope)
    assert ADDRESS in example
    assert len(scope["made"]["images"]) == 1
    assert scope["made"]["seeds"] == [3]
    assert [one["detector"] for one in scope["maps"]["maps"]] == ["canny"]
    assert [one["model"] for one in scope["compared"]["models"]] == ["tiny", "tiny-lite"]
    assert "tiny-lite" in capsys.readouterr().out


@pytest.mark.parametrize("group", [PageFlags, ModelFlags])
def test_every_flag_is_in_the_table(group):
    rows = [line for line in TEXT.splitlines() if line.startswith("| `--")]
    told = set(re.findall(r"`--([\w-]+)", "".join(row.split("|")[1] for row in rows)))
    names = {field.name.replace("_", "-") for field in fields(group)}
    assert {"lora" if name == "loras" else name for name in names} <= told
