"""What the documents promise: their commands parse, their links lead somewhere, their tables are whole."""

import argparse
import ast
import importlib
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from annotator.registry import DETECTORS
from cldm.controls import CONTROLS
from ldm.models.diffusion.samplers import SAMPLERS
from tools.download.catalogue import find_files

ROOT = Path(__file__).parents[1]
ENGLISH, KOREAN = ROOT / "README.md", ROOT / "README.ko.md"
DOCUMENTS = sorted(
    [ENGLISH, KOREAN, ROOT / "models/README.md", ROOT / "test_imgs/README.md", *ROOT.glob("docs/*.md")]
)
MAX_LINES = 200
MARKER = "TABLE-TO-" + "FILL"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PYTHON = {"python", ".venv/bin/python"}
OTHERS = {"source", "conda"}  # the shell's and other people's programs: not ours to check
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(document, language):
    return [body for name, body in FENCE.findall(document.read_text(encoding="utf-8")) if name == language]


def commands(document):
    lines = "".join(blocks(document, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := tuple(shlex.split(line, comments=True)))]


ALL_COMMANDS = sorted({words for document in DOCUMENTS for words in commands(document)})


def split_python(words):
    """(module, its arguments) of a command that starts with python."""
    if words[1] == "-m":
        package = (ROOT / words[2].replace(".", "/") / "__main__.py").is_file()
        return f"{words[2]}.__main__" if package else words[2], list(words[3:])
    assert (ROOT / words[1]).is_file()
    return ".".join(Path(words[1]).with_suffix("").parts), list(words[2:])


SCRIPTS = sorted({split_python(words)[0] for words in ALL_COMMANDS if words[0] in PYTHON} - {"pytest"})


class Parsed(BaseException):
    """Raised instead of running the command; no `except Exception` of a script may catch it."""


@pytest.fixture
def parse_only(monkeypatch):
    """Scripts stop once their command line is read."""

    def stop_after(parse):
        def parse_and_stop(self, args=None):
            raise Parsed(parse(self, args))

        return parse_and_stop

    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)
        monkeypatch.setattr(argparse.ArgumentParser, name, stop_after(parse))


def test_there_are_commands_to_check():
    known = {"generate", "eval.fill50k", "scenes.fill50k", "trainer.tiny.__main__"}
    assert known <= set(SCRIPTS)


@pytest.mark.parametrize("words", ALL_COMMANDS, ids=" ".join)
def test_every_command_exists_and_takes_its_flags(words, parse_only):
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words[0] in OTHERS:
        return
    assert words[0] in PYTHON
    module, arguments = split_python(words)
    if module not in SCRIPTS:
        assert find_spec(module)
        return
    with pytest.raises(Parsed):
        importlib.import_module(module).main(arguments)


@pytest.mark.parametrize("module", SCRIPTS)
def test_every_script_helps(module, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(["--help"])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("words", ALL_COMMANDS, ids=" ".join)
def test_pictures_and_yamls_in_commands_are_there(words):
    named = [word for word in words if word.startswith(("test_imgs", "models/"))]
    assert not [word for word in named if not (ROOT / word).exists()]


@each_document
def test_links_and_pictures_exist(document):
    targets = [t for t in LINK.findall(document.read_text(encoding="utf-8")) if "://" not in t]
    missing = [t for t in targets if not (document.parent / t.split("#")[0]).exists()]
    assert not missing


@each_document
def test_files_named_in_tables_exist(document):
    names = re.findall(r"`((?:ldm|cldm|annotator|eval|models|tests|bench)/[\w./*]*)`", document.read_text())
    assert not [name for name in names if not list(ROOT.glob(name.rstrip("/")))]


@each_document
def test_no_number_is_left_to_fill_in(document):
    assert MARKER not in document.read_text(encoding="utf-8")


def test_both_readmes_have_the_same_commands_code_links_and_tables():
    assert commands(ENGLISH) == commands(KOREAN)
    assert [ast.dump(ast.parse(code)) for code in blocks(ENGLISH, "python")] == [
        ast.dump(ast.parse(code)) for code in blocks(KOREAN, "python")
    ]
    english, korean = (path.read_text(encoding="utf-8") for path in (ENGLISH, KOREAN))
    other = {"README.ko.md": "README.md", "docs/img/demo-en.png": "docs/img/demo-ko.png"}
    assert sorted(other.get(t, t) for t in LINK.findall(english)) == sorted(LINK.findall(korean))
    assert numbers_in_tables(english) == numbers_in_tables(korean)


def numbers_in_tables(text):
    rows = (line for line in text.splitlines() if line.startswith("|"))
    return [sorted(re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", row)) for row in rows]


@pytest.mark.parametrize("document", [ENGLISH, KOREAN], ids=lambda path: path.name)
def test_a_readme_is_short_and_lists_every_control_and_sampler(document):
    text = document.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    for name, control in CONTROLS.items():
        first_cells = re.compile(rf"^\|[^|]*`{name}`")
        rows = [line for line in text.splitlines() if first_cells.match(line)]
        if control.stem is None:
            assert f"`--control {name}`" in text
            continue
        assert len(rows) == 1
        assert re.search(rf"\b{control.stem}\b", rows[0])
        assert control.stem_10 is None or control.stem_10 in rows[0]
        cell = rows[0].split("|")[3].strip()
        at_once = any(DETECTORS[one].annotate for one in control.detectors)
        assert cell.startswith(("yes", "예")) == at_once
        if control.detectors and not at_once:
            fetched = {one.name for one in find_files(re.findall(r"`get (\w+)`", cell)).values()}
            assert any(fetched >= set(DETECTORS[one].weights) for one in control.detectors)
    (samplers,) = (part for part in text.split("\n\n") if part.startswith("`--sampler`"))
    assert re.findall(r"`(\w+)`", samplers) == list(SAMPLERS)


def python_blocks():
    return [(d, i, code) for d in DOCUMENTS for i, code in enumerate(blocks(d, "python"))]


@pytest.mark.parametrize(
    ("document", "index", "code"), python_blocks(), ids=[f"{d.name}-{i}" for d, i, _ in python_blocks()]
)
def test_python_examples_import_what_exists(document, index, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(alias.name == "*" or hasattr(module, alias.name) for alias in node.names)


def test_the_python_example_makes_a_picture(tmp_path, monkeypatch):
    for name in ("models", "test_imgs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks(ENGLISH, "python")[0], "README.md", "exec"), {})
    assert (tmp_path / "outputs/circle.png").is_file()
