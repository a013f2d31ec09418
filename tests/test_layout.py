"""What holds for the repository as a whole: what is shipped, what imports what, what is written down."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parent.parent
WORKER = ROOT / "worker" / "cartridge_warp"
OPERATOR_ONLY = {"warp_operator", "kopf", "kubernetes", "jinja2"}
DRIVERS = {"pymongo", "bson", "psycopg", "psycopg_pool"}
# Licensed so, or so large, that the shipped packages must do without.
TEST_ONLY = {"secantus", "hypothesis", "xdist"}


def project_files() -> Iterator[tuple[Path, str]]:
    """Every text file that belongs to the project, tracked or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of the project's files")
    for name in filter(None, listed.stdout.split("\0")):
        try:
            yield Path(name), (ROOT / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue


def imported_roots(source: Path) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    roots = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            roots |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            roots.add(node.module.partition(".")[0])
    return roots


def test_the_folder_operator_is_no_package():
    """`import operator` stays the standard library's: the folder of that name holds no `__init__.py`."""
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "worker" / "__init__.py").exists()


def test_the_wheel_holds_both_packages_whole(tmp_path):
    """Each file of both packages is in the wheel, and nothing else but the metadata and the licence."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    present = {
        path.relative_to(package.parent).as_posix()
        for package in (WORKER, ROOT / "operator" / "warp_operator")
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"cartridge_warp/py.typed", "warp_operator/py.typed"} <= packed
    assert packed == present


def test_importing_the_worker_brings_nothing_of_the_operator():
    """All modules of the worker can be imported, and none loads the operator or its libraries."""
    program = """
import importlib, pkgutil, sys
import cartridge_warp
for module in pkgutil.walk_packages(cartridge_warp.__path__, "cartridge_warp."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & (OPERATOR_ONLY | TEST_ONLY)


@pytest.mark.parametrize("module", sorted(WORKER.rglob("*.py")), ids=lambda path: str(path.relative_to(WORKER)))
def test_no_module_of_the_worker_imports_the_operator(module):
    """No import of the operator, its libraries or the test servers, not even one inside a function."""
    assert not imported_roots(module) & (OPERATOR_ONLY | TEST_ONLY)


@pytest.mark.parametrize("module", sorted((WORKER / "cli").glob("*.py")), ids=lambda path: path.stem)
def test_the_drivers_are_for_the_demo_alone_in_the_command_line(module):
    """Only the demo's modules import a driver or BSON: the other commands reach both sides by the connectors."""
    assert module.stem.startswith("demo") or not imported_roots(module) & DRIVERS


@pytest.mark.parametrize(
    "module", sorted(WORKER.rglob("__init__.py")), ids=lambda path: str(path.parent.relative_to(WORKER))
)
def test_init_modules_only_re_export(module):
    """An `__init__` holds a docstring, imports, `__all__` and the version, and nothing that does anything."""
    for node in ast.parse(module.read_text()).body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        known = {ast.unparse(each) for each in names if each} & {"__all__", "__version__"}
        assert text or known or isinstance(node, ast.Import | ast.ImportFrom), f"line {node.lineno}"


def test_constraints_are_plain_versions():
    """Each line of constraints.txt is a name and one version: no address, path, option or project of ours."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line), line
        assert not line.startswith("cartridge-warp")


def test_constraints_cover_every_requirement():
    """Everything that pyproject.toml asks for has its tested version in constraints.txt."""

    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    named = {normal(match.group()) for each in asked if (match := re.match(r"[A-Za-z0-9._-]+", each))}
    fixed = {normal(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert named - {"cartridge-warp"} <= fixed


def index_hosts() -> set[str]:
    """The hosts that this machine's pip asks for packages, apart from the public one."""
    settings = configparser.RawConfigParser(strict=False)
    settings.read([os.environ.get("PIP_CONFIG_FILE", ""), "/etc/pip.conf", Path.home() / ".config/pip/pip.conf"])
    values = [value for name, value in os.environ.items() if "INDEX_URL" in name or name.endswith("_INDEX")]
    values += [value for section in settings.sections() for value in dict(settings.items(section)).values()]
    hosts = {urlsplit(word).hostname for value in values for word in value.split() if "://" in word}
    return {host for host in hosts if host and host != "pypi.org"}


def test_no_file_names_the_machine_it_was_written_on():
    """No file holds this checkout's path, a home folder, or the host of a package index."""
    homes = re.compile("(?<![\\w.])/" + "(?:home|Users)" + "/\\w")
    names = {str(ROOT), f"{Path.home()}/"} | index_hosts()
    for path, text in project_files():
        found = [name for name in names if name in text] + homes.findall(text)
        assert not found, f"{path} names {found[0]}"
