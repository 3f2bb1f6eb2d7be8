"""The shape of the code as a table, of the working tree or of revisions: size, layout, functions, two paths.

    python -m bench.code_shape 7dedb7c HEAD

Tests do not count. Lines are those of .py, .cpp, .h and .js files, blank ones and comments included; all else
is measured in Python files. The last rows say what the two paths count: the files on a checkpoint's way are
those of `bench.checkpoint_trace`, run in each revision; flags' way is all that training's script imports.
"""

from __future__ import annotations

import ast
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common.shell import Parser, run_command

SUFFIXES = (".py", ".cpp", ".h", ".js")
LINES = "lines"
TRAINING = "tutorial_train"  # the script whose imports are the training path
TRACE = Path(__file__).with_name("checkpoint_trace.py")
NONE = "–"
Sources = dict[str, str]  # path in the tree -> text
Function = ast.FunctionDef | ast.AsyncFunctionDef


def measure(folder: Path) -> dict[str, object]:
    """Every row of the table for the tree in `folder`, by its label."""
    sources = read_sources(folder)
    trees = {path: ast.parse(text) for path, text in sources.items() if path.endswith(".py")}
    lines = {path: len(text.splitlines()) for path, text in sources.items()}
    packages: Counter[str] = Counter()
    for path, count in lines.items():
        packages[path.split("/")[0] if "/" in path else "scripts"] += count
    return {
        LINES: f"{sum(lines.values()):,}",
        **{f"{LINES} of {name}": f"{count:,}" for name, count in sorted(packages.items())},
        **layout(sources),
        **functions(trees),
        "comments per 100 lines of Python": comments(sources),
        "import cycles": len(cycles(imports(trees))),
        **paths(folder, trees),
    }


def read_sources(folder: Path) -> Sources:
    """The files of a tree that count; in a git repository only what it knows, so no virtual environment."""
    if (folder / ".git").exists():
        names = _git(folder, "ls-files").decode().splitlines()
    else:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    wanted = (name for name in names if name.endswith(SUFFIXES) and not name.startswith("tests/"))
    return {name: (folder / name).read_text("utf-8") for name in sorted(wanted) if (folder / name).is_file()}


def layout(sources: Sources) -> dict[str, object]:
    """How many files there are, and how they are spread over folders."""
    folders = Counter(path.rpartition("/")[0] for path in sources)
    largest, count = folders.most_common(1)[0] if folders else ("", 0)
    return {
        "files": len(sources),
        "folders": len(folders),
        "files in the largest folder": f"{count} ({largest or 'top'})",
        "depth of folders": max((path.count("/") for path in sources), default=0),
        "longest file": max((len(text.splitlines()) for text in sources.values()), default=0),
    }


def functions(trees: dict[str, ast.Module]) -> dict[str, object]:
    """Lengths of functions, and the share whose parameters and result all have types."""
    found = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, Function)]
    lengths = [node.end_lineno - node.lineno + 1 for node in found if node.end_lineno]
    typed = sum(map(_is_typed, found)) / max(1, len(found))
    return {
        "functions": f"{len(found):,}",
        "functions: median length": f"{statistics.median(lengths or [0]):g}",
        "functions: longest": max(lengths, default=0),
        "functions: all types said": f"{typed:.1%}",
    }


def comments(sources: Sources) -> str:
    """Comments in Python files, per 100 lines that are not blank."""
    files = [text for path, text in sources.items() if path.endswith(".py")]
    tokens = (token for text in files for token in tokenize.generate_tokens(io.StringIO(text).readline))
    count = sum(token.type == tokenize.COMMENT for token in tokens)
    lines = sum(bool(line.strip()) for text in files for line in text.splitlines())
    return f"{100 * count / max(1, lines):.1f}"


def imports(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module -> modules of the tree that it imports, in functions too."""
    modules = {_module(path) for path in trees}
    return {_module(path): set(_imported(tree)) & modules - {_module(path)} for path, tree in trees.items()}


def cycles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of modules that import each other."""
    below = {name: reachable(graph, name) for name in graph}
    rings = (frozenset(one for one in below[name] if name in below[one]) for name in graph)
    return {ring for ring in rings if ring}


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """What `start` imports, and what that imports, and so on."""
    found: set[str] = set()
    pending = list(graph.get(start, ()))
    while pending:
        if (name := pending.pop()) not in found:
            found.add(name)
            pending += graph[name]
    return found


def paths(folder: Path, trees: dict[str, ast.Module]) -> dict[str, object]:
    """How many files two things pass: a checkpoint on its way into a model, flags on theirs into training."""
    done = subprocess.run([sys.executable, TRACE], cwd=folder, capture_output=True, text=True, check=False)
    trace = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    training = {TRAINING, *reachable(imports(trees), TRAINING)}
    on_path = (tree for path, tree in trees.items() if _module(path) in training)
    return {
        "checkpoint: files that are handed its path": len(trace["handed"]) if trace else NONE,
        "checkpoint: files at work until it is weights": len(trace["at_work"]) if trace else NONE,
        "training: files in which `Namespace` occurs": sum(map(_names_namespace, on_path)),
    }


def table(columns: dict[str, dict[str, object]]) -> str:
    """Markdown with one column a revision."""
    labels = list(dict.fromkeys(label for column in columns.values() for label in column))
    labels.sort(key=lambda label: not label.startswith(LINES))  # packages that a later column brings too
    rows = [[label, *(str(column.get(label, NONE)) for column in columns.values())] for label in labels]
    head = [["", *columns], ["---"] * (len(columns) + 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in head + rows)


def measure_revision(repository: Path, revision: str) -> dict[str, object]:
    """`measure` of a revision's files, unpacked for the while."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(_git(repository, "archive", revision))) as tar:
            tar.extractall(folder, filter="data")
        return measure(Path(folder).resolve())


def _git(folder: Path, *words: str) -> bytes:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"git {' '.join(words)}: {done.stderr.decode().strip().splitlines()[0]}")
    return done.stdout


def _module(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def _is_typed(node: Function) -> bool:
    args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    args += [arg for arg in (node.args.vararg, node.args.kwarg) if arg]
    return bool(node.returns) and all(arg.annotation for arg in args if arg.arg not in ("self", "cls"))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (node.module, *inner)


def _names_namespace(tree: ast.Module) -> bool:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return "Namespace" in names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit codes as `common.shell`."""
    parser = Parser("-m bench.code_shape", __doc__)
    parser.add_argument("revisions", nargs="*", metavar="REV", help="of git (default: the working tree)")
    revisions = parser.parse_args(argv).revisions
    here = Path.cwd()

    def act() -> str:
        columns = {name: measure_revision(here, name) for name in revisions}
        return table(columns or {"working tree": measure(here)})

    return run_command(act)


if __name__ == "__main__":
    raise SystemExit(main())
