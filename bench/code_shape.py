"""The shape of the code as a table, of the working tree or of revisions: size, layout, functions, two paths.

    python -m bench.code_shape 7dedb7c HEAD

Tests do not count. Lines are those of .py, .cpp, .h and .js files, blank ones and comments included; all else
is measured in Python files. The last rows count the files with a function that is handed the path of the
weights while a pipeline is made, and those of the training script's imports in which `Namespace` occurs.
"""

from __future__ import annotations

import ast
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections import Counter
from pathlib import Path

from bench.harness import markdown
from common.shell import Parser, run_command

SUFFIXES = (".py", ".cpp", ".h", ".js")
LINES = "lines"
TRAINING = "tutorial_train"  # the script whose imports are the training path
NONE = "–"
Function = ast.FunctionDef | ast.AsyncFunctionDef
# Run in a tree of this project: how many of its files have a function that is handed the path of the weights.
HANDED = """
import sys
from pathlib import Path
from cldm.pipeline import Pipeline

def is_weights(value):
    if isinstance(value, (list, tuple)):
        return any(map(is_weights, value))
    return isinstance(value, (str, Path)) and str(value).endswith("tiny.safetensors")

def profile(frame, event, _):
    code, root = frame.f_code, f"{Path.cwd()}/"
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 0x04)  # with *args
    given = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
    if event == "call" and code.co_filename.startswith(root) and is_weights(given):
        files.add(code.co_filename)

files = set()
sys.setprofile(profile)
Pipeline.from_files("models/tiny.yaml", device="cpu")
sys.setprofile(None)
print(len([name for name in files if "/.venv/" not in name]))
"""


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
        **paths(folder, {_module(path): tree for path, tree in trees.items()}),
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


def paths(folder: Path, trees: dict[str, ast.Module]) -> dict[str, object]:
    """How many modules import each other in a ring; what two things pass on their way."""
    graph = {name: _imports(tree) & trees.keys() - {name} for name, tree in trees.items()}
    done = subprocess.run([sys.executable, "-c", HANDED], cwd=folder, capture_output=True, text=True)
    training = {TRAINING, *reachable(graph, TRAINING)}
    return {
        "import cycles": len(cycles(graph)),
        "checkpoint: files that are handed its path": NONE if done.returncode else done.stdout.split()[-1],
        "training: files in which `Namespace` occurs": sum(
            _names_namespace(tree) for name, tree in trees.items() if name in training
        ),
    }


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


def _imports(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _names_namespace(tree: ast.Module) -> bool:
    return any("Namespace" in (getattr(node, "id", ""), getattr(node, "attr", "")) for node in ast.walk(tree))


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
