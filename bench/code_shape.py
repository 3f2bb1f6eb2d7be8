"""The shape of the code as a table, of the working tree or of revisions: size, layout, functions, comments.

    python -m bench.code_shape 7dedb7c HEAD

Tests do not count. Lines are those of .py, .cpp, .h and .js files, blank ones and comments included; all else
is measured in Python files. That nothing imports in a ring, `tests/test_layers.py` holds.
"""

from __future__ import annotations

import ast
import io
import statistics
import subprocess
import tarfile
import tempfile
import tokenize
from collections import Counter
from pathlib import Path

from bench.harness import markdown
from common.shell import Parser, run_command

SUFFIXES = (".py", ".cpp", ".h", ".js")
LINES = "lines"
NONE = "–"  # of a revision that has no such row
Function = ast.FunctionDef | ast.AsyncFunctionDef


def measure(folder: Path) -> dict[str, object]:
    """Every row of the table for the tree in `folder`, by its label."""
    sources = read_sources(folder)
    trees = {path: ast.parse(text) for path, text in sources.items() if path.endswith(".py")}
    lines = {path: len(text.splitlines()) for path, text in sources.items()}
    packages: Counter[str] = Counter()
    for path, count in lines.items():
        packages[path.split("/")[0] if "/" in path else "scripts"] += count
    folders = Counter(path.rpartition("/")[0] for path in sources)
    largest, count = max(folders.items(), key=lambda pair: pair[1], default=("", 0))
    return {
        LINES: f"{sum(lines.values()):,}",
        **{f"{LINES} of {name}": f"{count:,}" for name, count in sorted(packages.items())},
        "files": len(sources),
        "folders": len(folders),
        "files in the largest folder": f"{count} ({largest or 'top'})",
        "depth of folders": max((path.count("/") for path in sources), default=0),
        "longest file": max(lines.values(), default=0),
        **functions(trees),
        "comments per 100 lines of Python": comments([sources[path] for path in trees]),
    }


def read_sources(folder: Path) -> dict[str, str]:
    """Path in the tree -> text of the files that count; in a git repository only of what it knows."""
    if (folder / ".git").exists():
        names = _git(folder, "ls-files").decode().splitlines()
    else:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    wanted = (name for name in names if name.endswith(SUFFIXES) and not name.startswith("tests/"))
    return {name: (folder / name).read_text("utf-8") for name in sorted(wanted) if (folder / name).is_file()}


def functions(trees: dict[str, ast.Module]) -> dict[str, object]:
    """Lengths of functions, and the share whose parameters and result all have types."""
    found = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, Function)]
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in found] or [0]
    return {
        "functions": f"{len(found):,}",
        "functions: median length": f"{statistics.median(lengths):g}",
        "functions: longest": max(lengths),
        "functions: all types said": f"{sum(map(_is_typed, found)) / max(1, len(found)):.1%}",
    }


def _is_typed(node: Function) -> bool:
    args = [arg for arg in ast.walk(node.args) if isinstance(arg, ast.arg)]
    return bool(node.returns) and all(arg.annotation for arg in args if arg.arg not in ("self", "cls"))


def comments(files: list[str]) -> str:
    """Comments in Python files, per 100 lines that are not blank."""
    tokens = (token for text in files for token in tokenize.generate_tokens(io.StringIO(text).readline))
    count = sum(token.type == tokenize.COMMENT for token in tokens)
    lines = sum(bool(line.strip()) for text in files for line in text.splitlines())
    return f"{100 * count / max(1, lines):.1f}"


def measure_revision(repository: Path, revision: str) -> dict[str, object]:
    """`measure` of a revision's files, unpacked for the while."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(_git(repository, "archive", revision))) as tar:
            tar.extractall(folder, filter="data")  # no links out of the folder
        return measure(Path(folder).resolve())


def _git(folder: Path, *words: str) -> bytes:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"git {' '.join(words)}: {done.stderr.decode().strip().splitlines()[0]}")
    return done.stdout


def table(columns: dict[str, dict[str, object]]) -> str:
    """One column a revision."""
    labels = list(dict.fromkeys(label for column in columns.values() for label in column))
    labels.sort(key=lambda label: not label.startswith(LINES))  # packages that a later column brings too
    rows = ([label, *(column.get(label, NONE) for column in columns.values())] for label in labels)
    return markdown(["", *columns], rows)


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit codes as `common.shell`."""
    parser = Parser("python -m bench.code_shape", __doc__)
    parser.add_argument("revisions", nargs="*", metavar="REV", help="of git (default: the working tree)")
    revisions, here = parser.parse_args(argv).revisions, Path.cwd()
    return run_command(
        lambda: table({name: measure_revision(here, name) for name in revisions} or {"tree": measure(here)})
    )


if __name__ == "__main__":
    raise SystemExit(main())
