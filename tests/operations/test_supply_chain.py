"""The supply chain: what is installed is locked by its hash, what is locked is needed, what is needed is declared.

No network: known holes in dependencies are looked up elsewhere (SECURITY.md).
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ["runtime", "dev", "tools"]
OURS = {"relayd", "tests", "scripts", "bench_lib"}
BY_NAME = {
    "httptools": "uvicorn's parser, which relayd/web/http.py asks for",
}
"""Dependencies that no file imports itself."""
TOOLS = {
    "import-linter": "scripts/check",
    "mypy": "scripts/check",
    "ruff": "scripts/check",
    "pytest-timeout": "pyproject.toml",
    "pytest-xdist": "scripts/test",
    "types-pyyaml": "pyproject.toml",
}
"""Dependencies of development that no file imports: programs and plugins, and who uses them."""
BESIDE = {"atheris": "tests/fuzz/guided.py says how to get it; no test needs it"}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(each).name) for each in requirements}


DECLARED = names(PROJECT["dependencies"])
FOR_DEVELOPMENT = names(PROJECT["optional-dependencies"]["dev"])


def locked(lock: str) -> dict[str, str]:
    text = (ROOT / "scripts" / "lock" / f"{lock}.txt").read_text()
    return {canonicalize_name(name): version for name, version in re.findall(r"^(\S+)==(\S+)", text, re.M)}


def imported(*folders: str) -> Iterator[tuple[str, Path]]:
    """Top-level modules that are neither Python's nor ours, and where they are imported."""
    for path in (
        path for folder in folders for path in (ROOT / folder).rglob("*.py") if "node_modules" not in path.parts
    ):
        for node in ast.walk(ast.parse(path.read_bytes())):
            found: list[str] = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found = [node.module or ""]
            for name in found:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names | OURS | BESIDE.keys():
                    yield top, path.relative_to(ROOT)


def providers(*folders: str) -> set[str]:
    """The distributions of what these folders import."""
    known = metadata.packages_distributions()
    found = set()
    for module, path in imported(*folders):
        assert module in known, f"{path} imports {module}, which nothing installed provides"
        found |= {canonicalize_name(name) for name in known[module]}
    return found


def needs(distribution: str, extras: set[str]) -> Iterator[Requirement]:
    locked_for = {"python_version": "3.11", "python_full_version": "3.11.0"}
    for line in metadata.requires(distribution) or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate(locked_for | {"extra": extra}) for extra in extras | {""}):
            yield requirement


def reached(requirements: list[str]) -> set[str]:
    """Everything that these requirements bring with them on this machine."""
    queue = [Requirement(each) for each in requirements]
    found: set[tuple[str, frozenset[str]]] = set()
    while queue:
        requirement = queue.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) not in found:
            found.add((name, extras))
            queue += needs(name, set(extras))
    return {name for name, _ in found}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_hashes_and_no_server_is_named(lock: str) -> None:
    text = (ROOT / "scripts" / "lock" / f"{lock}.txt").read_text()
    packages = re.findall(r"^([A-Za-z0-9_.-]+)==[^\s\\]+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.M)
    assert len(packages) == len(re.findall(r"^[A-Za-z0-9]", text, re.M)) >= (2 if lock == "tools" else 20)
    assert "://" not in text
    assert "--index-url" not in text


def test_packages_for_node_are_locked_by_hash_and_no_server_is_named() -> None:
    lock = json.loads((ROOT / "tests" / "real" / "package-lock.json").read_text())
    packages = {name: each for name, each in lock["packages"].items() if name}
    assert packages
    assert [name for name, each in packages.items() if not each["integrity"].startswith("sha512-")] == []
    assert [name for name, each in packages.items() if "://" in each.get("resolved", "")] == []


def test_scripts_install_nothing_that_is_not_locked() -> None:
    lines = [
        line
        for path in sorted((ROOT / "scripts").rglob("*"))
        if path.is_file() and path.suffix in {"", ".sh"}
        for line in path.read_text().splitlines()
        if re.search(r"\bpip install\b", line)
    ]
    assert len(lines) >= 5
    # relayd itself comes from the checkout; --no-build-isolation: what builds it is locked, too
    fine = ("--require-hashes -r", "--no-deps --no-build-isolation")
    assert [line for line in lines if not any(each in line for each in fine)] == []


def test_the_locks_hold_all_that_the_project_asks_for() -> None:
    wanted = DECLARED | {"setuptools"}
    assert wanted <= set(locked("runtime"))
    assert wanted | FOR_DEVELOPMENT <= set(locked("dev"))


def test_tests_run_on_the_versions_that_production_runs_on() -> None:
    dev = locked("dev")
    assert {name: dev.get(name) for name in locked("runtime")} == locked("runtime")
    installed = {canonicalize_name(each.metadata["Name"]): each.version for each in metadata.distributions()}
    assert {name: version for name, version in dev.items() if installed.get(name, version) != version} == {}


def test_nothing_is_locked_that_nothing_needs() -> None:
    runtime = reached([*PROJECT["dependencies"], "setuptools"])
    assert set(locked("runtime")) - runtime == set()
    assert set(locked("dev")) - runtime - reached(PROJECT["optional-dependencies"]["dev"]) == set()


def test_what_relayd_imports_is_declared_and_what_is_declared_is_imported() -> None:
    found = providers("relayd")
    assert found - DECLARED == set(), "imported, but not a dependency of the project: it may vanish with another one"
    assert DECLARED - found == BY_NAME.keys()


def test_what_the_tests_import_is_declared_and_what_is_declared_is_used() -> None:
    found = providers("tests", "scripts")
    assert found - DECLARED - FOR_DEVELOPMENT == set()
    assert FOR_DEVELOPMENT - found == TOOLS.keys()
    words = {
        "import-linter": "lint-imports",
        "types-pyyaml": "mypy",
        "pytest-xdist": "-n ",
        "pytest-timeout": "timeout =",
    }
    unused = [name for name, user in TOOLS.items() if words.get(name, name) not in (ROOT / user).read_text()]
    assert unused == []
