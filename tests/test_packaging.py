"""What the layout of the package promises: one copy of each part, a light import, a typed and complete facade."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import morgan.background
from morgan.background.ipc import launch

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "morgan" / "background"
PARTS = ("supervisor", "workers", "ipc")
HEAVY = ("torch", "sentence_transformers", "transformers", "qdrant_client", "qdrant_edge")


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that finds the package where this one does."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=launch.environment({}), capture_output=True, text=True, check=False)


def facade_lists() -> tuple[dict[str, str], dict[str, str], set[str]]:
    """Return the facade's names as its source has them: for type checkers, for the import at run time, and __all__."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (branch,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(branch.test) == "TYPE_CHECKING"
    checked = {
        alias.name: "." * node.level + (node.module or "")
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assigned = {
        ast.unparse(node.targets[0]): node.value
        for node in [*branch.orelse, *tree.body]
        if isinstance(node, ast.Assign)
    }
    return checked, ast.literal_eval(assigned["_HOMES"]), set(ast.literal_eval(assigned["__all__"]))


def test_the_three_lists_of_the_facade_agree() -> None:
    checked, homes, public = facade_lists()
    assert checked == homes
    assert public == {*homes, "__version__"}
    assert all(getattr(morgan.background, name) is not None for name in public)
    assert set(dir(morgan.background)) == public


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = morgan.background.Nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_lies_at_the_top_and_the_package_links_to_it(part: str) -> None:
    link = PACKAGE / part
    assert link.is_symlink()
    assert link.resolve() == ROOT / part
    assert not link.readlink().is_absolute()


@pytest.mark.parametrize("part", PARTS)
def test_a_part_cannot_be_imported_from_the_root_as_a_second_copy(part: str) -> None:
    done = python(f"import {part}", ROOT)
    assert done.returncode == 1
    assert f"ImportError: import morgan.background.{part}, not {part}" in done.stderr


def test_morgan_is_a_namespace_that_others_may_share() -> None:
    assert not (PACKAGE.parent / "__init__.py").exists()


def test_what_a_client_imports_loads_no_model_and_no_vector_store(own_state: Path, tmp_path: Path) -> None:
    code = f"""
import json, sys
from morgan.background import Client, MorganError, ResultReader, SimpleTaskScheduler, TaskFrequency
Client().close()
SimpleTaskScheduler().schedule_task("reindex", "docs", TaskFrequency.DAILY)
print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))))
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_the_package_is_marked_as_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_version_is_the_same_in_both_places() -> None:
    assert morgan.background.__version__ == pyproject()["project"]["version"]


def test_the_wheel_takes_each_part_from_the_top_and_not_through_its_link() -> None:
    build = pyproject()["tool"]["hatch"]["build"]
    assert set(build["exclude"]) == {f"src/morgan/background/{part}" for part in PARTS}
    assert build["targets"]["wheel"]["force-include"] == {part: f"morgan/background/{part}" for part in PARTS}


def test_the_commands_of_the_readme_are_those_that_are_checked() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    demo, tests = (line.strip() for line in readme.splitlines() if line.startswith("    python3 -m venv"))
    make, install, run = tests.split(" && ")
    assert (make, run) == ("python3 -m venv .venv", ".venv/bin/python -m pytest")
    checked = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert install.removeprefix(".venv/bin/") in checked
    assert "python -m pytest" in checked
    assert demo.split(" && ") == [make, install.replace("all,test", "all"), ".venv/bin/morgan-background demo"]
    project = pyproject()["project"]
    assert "morgan-background" in project["scripts"]
    assert {"all", "test"} <= project["optional-dependencies"].keys()
