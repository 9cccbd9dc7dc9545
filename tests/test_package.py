"""The distribution: one name in site-packages, dependencies that point one way."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"vllm_eagle_plugin": "vllm_eagle_plugin", "conversion": "vllm_eagle_plugin.conversion",
           "training": "vllm_eagle_plugin.training", "benchmarks": "vllm_eagle_plugin.benchmarks"}  # fmt: skip
#: The only part of conversion that runs vLLM, in a process of its own.
RUNS_VLLM = {ROOT / "conversion" / "verify" / "engine.py"}
FILES = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]


def imported(file: Path) -> set[str]:
    """Every module a file imports, by absolute name, wherever the import stands."""
    folder, *inside = file.relative_to(ROOT).parts
    package = ".".join([FOLDERS[folder], *inside[:-1]])
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, (base if node.level else "", node.module)))
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def test_the_four_folders_are_one_package():
    for name in FOLDERS.values():
        assert importlib.import_module(name)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_nobody_imports_a_bare_folder(file):
    """Nor the experiments, which are not installed."""
    assert not {name.split(".")[0] for name in imported(file)} & ({"experiments", *FOLDERS} - {"vllm_eagle_plugin"})


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("vllm_eagle_plugin/reference", ("vllm.", "vllm_eagle_plugin.conversion", "vllm_eagle_plugin.serving")),
        ("conversion", ("vllm.", "vllm_eagle_plugin.serving")),
        ("vllm_eagle_plugin/serving", ("vllm_eagle_plugin.conversion", "vllm_eagle_plugin.training")),
        ("benchmarks", ("vllm_eagle_plugin.conversion", "vllm_eagle_plugin.training", "vllm_eagle_plugin.demo")),
    ],
)
def test_dependencies_point_one_way(folder, forbidden):
    for file in set((ROOT / folder).rglob("*.py")) - RUNS_VLLM:
        bad = [name for name in imported(file) if f"{name}.".startswith(forbidden)]
        assert not bad, f"{file} imports {bad}"


def test_the_environment_is_pinned_and_of_no_machine():
    """Every line is a package and its version: no path, no index, no checkout of somebody's."""
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+_]+", line) for line in lines)
