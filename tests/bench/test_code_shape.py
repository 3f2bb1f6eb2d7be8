"""The shape of a tiny repository is counted right, and a table has a column for each revision."""

import subprocess

import pytest

from bench.code_shape import main, measure

FILES = {
    "tutorial_train.py": "from pkg.flags import read\n",
    "pkg/__init__.py": "",
    "pkg/flags.py": "import argparse\n\n\ndef read(args: argparse.Namespace) -> int:\n    # why\n    pass\n",
    "pkg/deep/kernel.cpp": "int main() {\n}\n",
    "pkg/deep/a.py": "from pkg.deep import b\n\n\ndef f(x):\n    return b\n",
    "pkg/deep/b.py": "def g() -> None:\n    from pkg.deep.a import f\n",
    "tests/test_flags.py": "def test():\n    pass\n",
    "notes.md": "not code\n",
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git("init", "-q")
    commit("first")
    return tmp_path


def git(*words):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)


def commit(message):
    git("add", "-A")
    git("commit", "-q", "-m", message)


def test_everything_but_tests_is_counted(repository):
    assert measure(repository) == {
        "lines": "16",
        "lines of pkg": "15",
        "lines of scripts": "1",
        "files": 6,
        "folders": 3,
        "files in the largest folder": "3 (pkg/deep)",
        "depth of folders": 2,
        "longest file": 6,
        "functions": "3",
        "functions: median length": "2",
        "functions: longest": 3,
        "functions: all types said": "66.7%",
        "comments per 100 lines of Python": "10.0",
    }


def test_each_revision_is_a_column_and_files_that_git_does_not_know_are_none(repository, capsys):
    (repository / "new").mkdir()
    (repository / "new/file.py").write_text("x = 1\n")
    assert measure(repository)["files"] == 6
    commit("second")
    assert main(["HEAD~1", "HEAD"]) == 0
    rows = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in capsys.readouterr().out.splitlines()}
    cells = {label: [cell.strip() for cell in row] for label, row in rows.items()}
    assert cells[""] == ["HEAD~1", "HEAD"]
    assert cells["files"] == ["6", "7"]
    assert cells["lines of new"] == ["–", "1"]
    labels = list(cells)
    assert labels.index("lines of new") < labels.index("files")


def test_an_unknown_revision_is_a_mistake_in_one_sentence(repository, capsys):
    assert main(["nowhere"]) == 2
    assert capsys.readouterr().err.startswith("git archive nowhere: ")
