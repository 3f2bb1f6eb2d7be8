"""One list of pins serves make, conda and CI; the bounds of pyproject.toml agree with it and the imports."""

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
PYTHONS = [f"3.{minor}" for minor in range(9, 15)]
# Where packages of an extra may be imported; everything else needs no extra.
EXTRAS_OF = {
    "cldm": {"train"},
    "trainer": {"train"},
    "scenes": {"train"},  # drawing things
    "app": {"app", "dev"},  # dev: playwright takes screenshots
    "eval": {"eval"},
    "annotator": {"annotators"},
    "tests": {"annotators", "app", "bench", "dev", "eval", "train"},
    "bench": {"bench", "dev"},
}
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


def requirements(*extras):
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for one in lists for line in one]


PINNED = [
    Requirement(line)
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
PINS = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in PINNED}
EXTRAS = [extra for extra in PROJECT["optional-dependencies"] if extra not in ("all", "bench")]


def test_requirements_are_pins_and_nothing_else():
    loose = [str(pin) for pin in PINNED if not re.fullmatch(r"==[\w.]+", str(pin.specifier))]
    assert not loose
    assert len(PINNED) == len(PINS)


@pytest.mark.parametrize("requirement", requirements(*EXTRAS), ids=str)
def test_every_bound_is_a_lower_one_and_its_pin_satisfies_it(requirement):
    assert [one.operator for one in requirement.specifier] == [">="]
    assert Version(PINS[canonicalize_name(requirement.name)]) in requirement.specifier


def test_the_peers_of_the_benches_have_lower_bounds_and_are_not_pinned():
    listed = map(Requirement, PROJECT["optional-dependencies"]["bench"])
    peers = [one for one in listed if one.name != "diffusers"]
    assert {operator.operator for one in peers for operator in one.specifier} == {">="}
    assert not PINS.keys() & {canonicalize_name(one.name) for one in peers}


def test_the_extra_all_is_all_extras():
    (everything,) = map(Requirement, PROJECT["optional-dependencies"]["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == set(EXTRAS) == {"train", "app", "eval", "annotators", "dev"}


def imported_packages(file):
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module]
        yield from (name.split(".")[0] for name in names)


def files_of(part):
    return (ROOT / part).rglob("*.py") if (ROOT / part).is_dir() else [ROOT / part]


@pytest.mark.parametrize("part", [*ROOMS, "test_imgs", *(path.name for path in sorted(ROOT.glob("*.py")))])
def test_what_is_imported_is_declared(part):
    declared = {canonicalize_name(one.name) for one in requirements(*EXTRAS_OF.get(part, ()))}
    owners = packages_distributions()
    own = {path.stem for path in ROOT.iterdir()}
    missing = {
        f"{file.relative_to(ROOT)}: {package}"
        for file in files_of(part)
        for package in imported_packages(file)
        if package not in sys.stdlib_module_names
        and package not in own
        and declared.isdisjoint(map(canonicalize_name, owners.get(package, [package])))
    }
    assert not missing


def test_nothing_is_installed_but_dependencies():
    assert SETTINGS["tool"]["setuptools"] == {"packages": [], "py-modules": []}
    assert not (ROOT / "src").exists()  # where setuptools would look by itself


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_wins_over_an_installed_package_of_its_name(room, tmp_path):
    installed = tmp_path / room / "__init__.py"
    installed.parent.mkdir()
    installed.touch()
    assert Path(PathFinder.find_spec(room, [str(ROOT), str(tmp_path)]).origin).parent == ROOT / room


def test_conda_installs_the_same_pins_on_a_python_that_fits():
    conda = yaml.safe_load((ROOT / "environment.yaml").read_text())
    python, pip, packages = conda["dependencies"]
    assert conda["name"] == "control-v11"
    assert (pip, packages) == ("pip", {"pip": ["-r requirements.txt"]})
    assert python.removeprefix("python=") in SpecifierSet(PROJECT["requires-python"])


def test_ci_runs_make_test_after_bringing_a_browser():
    script = ROOT / ".ci/run"
    lines = [line.strip() for line in script.read_text().splitlines() if not line.startswith("#")]
    assert lines[:2] == ["set -e", 'cd "$(dirname "$0")/.."']
    assert lines[-1] == "exec make test"
    assert next(line for line in lines if "install" in line).endswith("||")  # no browser is no failure
    assert os.access(script, os.X_OK)


def test_pre_commit_lets_in_no_large_files_but_the_weights():
    hooks = [
        hook
        for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repo["hooks"]
    ]
    (guard,) = (hook for hook in hooks if hook["id"] == "check-added-large-files")
    assert re.search(guard["exclude"], "models/tiny.safetensors")
    assert not re.search(guard["exclude"], "docs/demo.png")
    assert {"ruff-check", "ruff-format"} <= {hook["id"] for hook in hooks}


# A stand-in for Python: has a version, answers the Makefile's -c by it, makes .venv, writes down the rest.
FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
    "-c "*) exec {python} -c "import sys; sys.version_info = ({version})
$2" ;;
    "--version "*) echo "Python {version}" ;;
    "-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && echo "$*" >> log ;;
    *) echo "$*" >> log; case "$*" in *"$FAILS"*) exit 1 ;; esac ;;
esac
"""


class Project:
    """A folder with our Makefile and a Python that only writes down what it is asked to do."""

    def __init__(self, folder, version="3, 12"):
        if shutil.which("make") is None:
            pytest.skip("make is not installed")
        self.folder = folder
        (folder / "Makefile").write_text((ROOT / "Makefile").read_text())
        (folder / "requirements.txt").write_text("torch==2.12.1\n")
        self.python = folder / "python"
        self.python.write_text(FAKE_PYTHON.format(python=sys.executable, version=version))
        self.python.chmod(0o755)

    def make(self, target, fails="no command holds this"):
        """(exit code, commands run, stderr)."""
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        env = {"PATH": os.environ["PATH"], "FAILS": fails}  # not what an outer make says by MAKEFLAGS
        command = ["make", target, f"PYTHON={self.python}"]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        return done.returncode, log.read_text().splitlines() if log.exists() else [], done.stderr


INSTALLS = re.compile(r"-m (venv|pip install)")


def installs(commands):
    return [command for command in commands if INSTALLS.match(command)]


def test_make_demo_installs_once_and_then_never_again(tmp_path):
    project = Project(tmp_path)
    code, first, _ = project.make("demo")
    assert code == 0
    assert [command.split()[1] for command in first] == ["venv", "pip", "app.demo"]
    assert first[1].endswith("-r requirements.txt")
    assert project.make("demo")[:2] == (0, ["-m app.demo"])
    assert project.make("test")[:2] == (0, ["-m ruff check .", "-m pytest -q -n 2 --dist loadfile"])


def test_make_installs_again_when_the_pins_change_but_keeps_its_venv(tmp_path):
    project = Project(tmp_path)
    project.make("demo")
    (tmp_path / "requirements.txt").write_text("torch==2.13.0\n")
    assert [command.split()[1] for command in project.make("demo")[1]] == ["pip", "app.demo"]
    assert not installs(project.make("demo")[1])


def test_make_goes_on_after_an_installation_that_broke_off(tmp_path):
    project = Project(tmp_path)
    code, commands, _ = project.make("demo", fails="pip install")
    assert code != 0
    assert "-m app.demo" not in commands
    code, commands, _ = project.make("demo")
    assert code == 0
    assert [command.split()[1] for command in commands] == ["pip", "app.demo"]


def test_failing_tests_fail_make(tmp_path):
    project = Project(tmp_path)
    assert project.make("test", fails="pytest")[0] != 0
    assert project.make("test", fails="ruff")[1][-1] == "-m ruff check ."


@pytest.mark.parametrize("version", PYTHONS)
def test_make_accepts_the_pythons_of_pyproject_and_names_the_others(tmp_path, version):
    code, commands, said = Project(tmp_path, version.replace(".", ", ")).make("demo")
    if version in SpecifierSet(PROJECT["requires-python"]):
        assert code == 0
    else:
        assert code != 0
        assert not commands
        assert "Python 3.10, 3.11 or 3.12 is needed" in said
        assert "make PYTHON=python3.12 demo" in said


def test_make_says_when_there_is_no_python_at_all(tmp_path):
    project = Project(tmp_path)
    project.python.unlink()
    code, commands, said = project.make("test")
    assert code != 0
    assert not commands
    assert "Python 3.10, 3.11 or 3.12 is needed" in said
