"""Imports point down only, and the rules that no linter knows hold in every file."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MADE_HERE = {"build", "outputs", "runs", "training", "tests"}
SCRIPTS = {Path(), Path("test_imgs")}  # folders whose files are run, never imported
MAX_LINES, MAX_FUNCTION_LINES = 250, 50

# From the bottom up: what stands in a line imports from the lines below and from nothing beside it but FREE.
# `config` is a door for old scripts.
HOUSE = (
    {"common", "config"},
    {"ldm", "quantize", "annotator", "scenes"},
    {"checkpoints"},
    {"cldm"},
    {"app", "trainer", "tools", "eval", "bench"},
    {"scripts"},
)
DOORS = {"config": "config"}
FREE = {
    "tools": {"app", "trainer"},
    "bench": {"app", "trainer", "tools", "eval", "scripts"},
    "eval": {"app", "bench"},
}
# Inside a package, from the bottom up; a module is in the line of its longest prefix, without one on top.
ROOMS = {
    "ldm": ("util image", "config", "modules.layers modules.feature_cache", "modules.attention", "modules"),
    "checkpoints": ("files names", "surgery"),
    "cldm": (
        "log_images controls lite ddim_hacked cuda_graphs",
        "cldm request compressed.pruned compressed.fused_blocks",
        "conditioning model compressed.quantized",
        "sampling",
        "pipeline",
    ),
    "annotator": (
        "util detector weights",
        "pose",
        "canny scribble picture hed lsd strokes shuffle pose_json class_colors",
        "networks.libraries networks.tensors networks.part_affinity",
        "networks.openpose_parts",
        "networks",
        "registry",
        "maps",
    ),
    "app": (
        "provenance generate_flags serve_flags listing data_url uploads words jobs",
        "batch request_data canvas",
        "form models drawing",
        "inputs worker comparing detecting",
        "outputs waiting measured",
        "page stored",
        "tabs",
    ),
    "quantize": (
        "arithmetic timesteps native",
        "activations",
        "schemes",
        "cpu triton",
        "backends",
        "layers",
        "fused selection",
        "model",
        "files",
        "calibration",
        "prune",
    ),
    "eval": (
        "intervals cache processes control",
        "metrics.metric metrics.weights",
        "metrics.distances metrics.networks metrics.likeness",
        "metrics",
        "pictures",
        "folders scoring",
    ),
    "trainer": (
        "settings",
        "flags losses optim data.rows",
        "plan model export data.dataset",
        "data",
        "module",
        "checkpointing",
        "lightning",
        "run tiny",
    ),
}
# Metrics know images only, however they were made; what makes some first are commands.
APART = {"eval": {"cldm", "trainer", "app"}}
COMMANDS = {"eval.fill50k", "eval.things", "eval.generate", "eval.materials", "eval.compare", "eval.people"}
HEAVY = {
    "controlnet_aux", "diffusers", "h5py", "matplotlib", "open_clip", "skimage", "timm", "torchmetrics",
    "torchvision", "transformers",
}  # fmt: skip
ORACLES = {"diffusers"}  # for tests and bench only
# Only there; importing Lightning costs seconds.
LIVES = {
    "pytorch_lightning": ("cldm.logger", "trainer"),
    "lightning": ("cldm.logger", "trainer"),
    "gradio": ("app", "gradio_app"),
    "sqlalchemy": ("gallery_phone.store",),
}
DEVICE_CHOOSER = "ldm.util"
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|mnt|opt|root|tmp|Users|work)/")


def code_files():
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return sorted(f for f in files if not MADE_HERE & set(f.parts) and not f.as_posix().startswith("."))


def name_of(file):
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(file): file for file in code_files()}
TREES = {name: ast.parse((ROOT / file).read_text()) for name, file in FILES.items()}


@dataclass(frozen=True)
class Import:
    target: str
    line: int
    at_import: bool  # runs as soon as the module is imported
    binds: str


def imports_of(tree, modules=FILES):
    found = []

    def walk(node, at_import):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    binds = alias.asname or alias.name.split(".")[0]
                    found.append(Import(alias.name, child.lineno, at_import, binds))
            elif isinstance(child, ast.ImportFrom):
                for alias in child.names:
                    inner = f"{child.module}.{alias.name}"
                    target = inner if inner in modules else child.module
                    found.append(Import(target, child.lineno, at_import, alias.asname or alias.name))
            else:
                later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                walk(child, at_import and not later and not typing)

    walk(tree, True)
    return found


def prefixes(name):
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def owner(name):
    """The part of the house that a module belongs to."""
    package = name.split(".")[0]
    if name in DOORS:
        return DOORS[name]
    return package if any(package in line for line in HOUSE) else "scripts"


def line_of(part):
    return next(level for level, line in enumerate(HOUSE) if part in line)


def room_of(name):
    """The line of a module inside its package."""
    package, _, inner = name.partition(".")
    lines = [line.split() for line in ROOMS.get(package, ())]
    known = {prefix: level for level, line in enumerate(lines) for prefix in line}
    return next((known[prefix] for prefix in prefixes(inner) if prefix in known), len(lines))


def may_import(name, target):
    mine, its = owner(name), owner(target)
    if mine == its:
        return {name, target} & DOORS.keys() or room_of(target) <= room_of(name)
    return line_of(its) < line_of(mine) or its in FREE.get(mine, ())


def is_door(name):
    """Whether this is a `__main__` of five lines that hands over to a command in a higher line."""
    return name.endswith(".__main__") and len((ROOT / FILES[name]).read_text().split("\n\n")) == 3


def upward(name, tree, modules=FILES):
    if is_door(name):
        return []
    return [
        f"line {one.line}: {name} imports {one.target}"
        for one in imports_of(tree, modules)
        if one.target in modules and not may_import(name, one.target)
    ]


def meddling(name, tree):
    """What a room must not know of, imported by anything but its commands."""
    strangers = APART.get(name.split(".")[0], set()) if name not in COMMANDS else set()
    packages = [(one.target.split(".")[0], one.line) for one in imports_of(tree)]
    return [f"line {line}: {package}" for package, line in packages if package in strangers]


def homeless(name, tree):
    """Packages that are imported outside of where they live."""
    packages = [(one.target.split(".")[0], one.line) for one in imports_of(tree)]
    return [
        f"line {line}: {package}"
        for package, line in packages
        if package in LIVES and not set(prefixes(name)) & set(LIVES[package])
    ]


def heavy(name, tree):
    packages = [(one.target.split(".")[0], one) for one in imports_of(tree)]
    early = [f"line {one.line}: {package}" for package, one in packages if package in HEAVY and one.at_import]
    if name.split(".")[0] == "bench":
        return early
    return early + [
        f"line {one.line}: {package} is an oracle" for package, one in packages if package in ORACLES
    ]


def hidden_builtins(tree):
    return [f"line {one.line}: {one.target}" for one in imports_of(tree) if one.binds == "eval"]


def literal_devices(tree):
    """Where a device is written down; comparing an existing one with a name is no choice."""
    asked = {id(leaf) for node in ast.walk(tree) if isinstance(node, ast.Compare) for leaf in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and re.fullmatch(r"(cuda|mps)(:\d+)?", str(node.value)):
            found += [f"line {node.lineno}: {node.value!r}"] if id(node) not in asked else []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            found.append(f"line {node.lineno}: .cuda()")
    return found


def long_functions(tree):
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    sizes = ((node.name, node.end_lineno - node.lineno + 1) for node in functions)
    return [f"{name} has {lines} lines" for name, lines in sizes if lines > MAX_FUNCTION_LINES]


def cycle(graph):
    """Modules that import each other in a ring, or None."""
    state = {}

    def visit(name, trail):
        state[name] = "open"
        for target in graph[name]:
            if state.get(target) == "open":
                return [*trail[trail.index(target) :], target] if target in trail else [name, target]
            if target not in state and (ring := visit(target, [*trail, target])):
                return ring
        state[name] = "done"
        return None

    return next((ring for name in graph if name not in state and (ring := visit(name, [name]))), None)


every_module = pytest.mark.parametrize("name", TREES)


@every_module
def test_imports_point_down(name):
    assert not upward(name, TREES[name])


def test_no_modules_import_each_other_in_a_ring():
    graph = {
        name: sorted({one.target for one in imports_of(tree) if one.target in FILES and one.target != name})
        for name, tree in TREES.items()
    }
    assert cycle(graph) is None


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES.values()} - SCRIPTS), ids=str)
def test_a_room_says_what_it_is_for_and_is_not_empty(folder):
    assert ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))
    assert {path.name for path in (ROOT / folder).iterdir()} - {"__init__.py", "__pycache__"}


@every_module
def test_heavy_packages_wait_inside_functions(name):
    assert not heavy(name, TREES[name])


@every_module
def test_metrics_know_images_and_not_how_they_are_made(name):
    assert not meddling(name, TREES[name])


@every_module
def test_some_packages_live_in_one_place(name):
    assert not homeless(name, TREES[name])


@pytest.mark.parametrize("file", sorted([*FILES.values(), *(ROOT / "tests").rglob("*.py")]), ids=str)
def test_nothing_hides_the_builtin_eval(file):
    assert not hidden_builtins(ast.parse((ROOT / file).read_text()))


@every_module
def test_devices_are_chosen_in_one_place(name):
    assert name == DEVICE_CHOOSER or not literal_devices(TREES[name])


@every_module
def test_a_file_and_its_functions_fit_on_a_few_screens(name):
    assert len((ROOT / FILES[name]).read_text().splitlines()) <= MAX_LINES
    assert not long_functions(TREES[name])


def text_files():
    suffixes = {".py", ".md", ".yaml", ".toml", ".txt", ".tsv"}
    tops = [ROOT / "Makefile", ROOT / ".ci/run", ROOT / ".pre-commit-config.yaml"]
    found = (p for p in ROOT.rglob("*") if p.suffix in suffixes and p.is_file())
    here = (p for p in found if not p.relative_to(ROOT).as_posix().startswith("."))
    return tops + [p for p in here if not (MADE_HERE - {"tests"}) & set(p.relative_to(ROOT).parts)]


def test_no_file_knows_the_machine_it_was_written_on():
    guilty = {
        f"{path.relative_to(ROOT)}:{number}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    }
    assert not guilty


KNOWN = {"ldm.util", "ldm.modules.unet", "cldm.cldm", "cldm.pipeline", "annotator.canny", "app.batch"}
KNOWN |= {"cldm.logger", "trainer.run", "generate"}


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (lambda tree: upward("ldm.modules.unet", tree, KNOWN), "from cldm import cldm"),
        (lambda tree: upward("cldm.cldm", tree, KNOWN), "def f():\n    from cldm.pipeline import Pipeline"),
        (lambda tree: upward("annotator.canny", tree, KNOWN), "import ldm.util"),
        (lambda tree: upward("trainer.run", tree, KNOWN), "from app.batch import run"),
        (lambda tree: upward("app.batch", tree, KNOWN), "import generate"),
        (lambda tree: upward("cldm.cldm", tree, KNOWN), "from cldm.logger import ImageLogger"),
        (lambda tree: meddling("eval.scoring", tree), "def f():\n    from cldm.pipeline import Pipeline"),
        (lambda tree: homeless("cldm.cldm", tree), "import pytorch_lightning as pl"),
        (lambda tree: homeless("gallery_phone.rules", tree), "def f():\n    from sqlalchemy import Table"),
        (lambda tree: heavy("ldm.util", tree), "try:\n    import torchvision.ops\nexcept ImportError: pass"),
        (lambda tree: heavy("cldm.cldm", tree), "def f():\n    from diffusers import UNet2DConditionModel"),
        (hidden_builtins, "import eval.fill50k"),
        (hidden_builtins, "from evaluation import run as eval"),
        (literal_devices, "x = x.to('cuda')"),
        (literal_devices, "def f(device='cuda:1'): pass"),
        (literal_devices, "model.cuda()"),
        (long_functions, "def f():\n" + "    pass\n" * MAX_FUNCTION_LINES),
        (lambda tree: MACHINE_PATH.search(ast.unparse(tree)), "path = '/" + "home/me/model.ckpt'"),
        (lambda tree: cycle({"a": ["b"], "b": ["c"], "c": ["b"]}), ""),
    ],
)
def test_each_rule_catches_what_it_forbids(rule, source):
    assert rule(ast.parse(source))


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (lambda tree: upward("cldm.pipeline", tree, KNOWN), "from cldm.cldm import ControlLDM"),
        (lambda tree: upward("trainer.run", tree, KNOWN), "from cldm.logger import ImageLogger"),
        (lambda tree: homeless("trainer.run", tree), "import pytorch_lightning as pl"),
        (lambda tree: heavy("ldm.util", tree), "def f():\n    import torchvision"),
        (
            lambda tree: heavy("ldm.util", tree),
            "if TYPE_CHECKING:\n    from transformers import CLIPTextModel",
        ),
        (hidden_builtins, "from eval.fill50k import quality"),
        (literal_devices, "fast = x.device.type == 'cuda'"),
        (lambda tree: cycle({"a": ["b", "c"], "b": ["c"], "c": []}), ""),
    ],
)
def test_no_rule_forbids_what_is_allowed(rule, source):
    assert not rule(ast.parse(source))
