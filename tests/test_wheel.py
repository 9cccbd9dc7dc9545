"""The wheel as it is published: built, installed into an environment of its own, registered, asked for help."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INPUTS = ("vllm_eagle_plugin", "conversion", "training", "benchmarks", "pyproject.toml", "README.md", "LICENSE")
#: What is read when a verb runs, and no Python module.
DATA = ("benchmarks/questions.jsonl", "benchmarks/report/page.html.j2", "benchmarks/monitoring/grafana.json",
        "training/recipes/eagle3.toml", "py.typed")  # fmt: skip
REGISTER = """
from importlib.metadata import distribution
(plugin,) = distribution("vllm-eagle-plugin").entry_points.select(group="vllm.general_plugins")
plugin.load()()
import vllm_eagle_plugin
from vllm import ModelRegistry
assert set(vllm_eagle_plugin.ARCHITECTURES) <= set(ModelRegistry.get_supported_archs())
print(vllm_eagle_plugin.__file__)
"""


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: building leaves things behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in INPUTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel"]
    run(*pip, "--no-deps", "--no-build-isolation", "-w", folder, source)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a command of an environment that has the wheel, and what it depends on from this one."""
    environment = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    (packages,) = environment.glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--python", environment / "bin/python",
        "install", "--no-deps", wheel)  # fmt: skip
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return lambda name, *arguments: run(environment / "bin" / name, *arguments)


def test_what_is_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"vllm_eagle_plugin"}, "one name in site-packages"
    assert {f"vllm_eagle_plugin/{name}" for name in DATA} <= set(names)
    modules = {str(f.relative_to(ROOT)) for top in INPUTS[:4] for f in (ROOT / top).rglob("*.py")}
    expected = {m if m.startswith("vllm_eagle_plugin/") else f"vllm_eagle_plugin/{m}" for m in modules}
    assert expected <= set(names), "a package is missing in pyproject.toml"


def test_registers(installed: Callable[..., str]) -> None:
    assert "/site-packages/vllm_eagle_plugin/__init__.py" in installed("python", "-P", "-c", REGISTER).splitlines()[-1]


@pytest.mark.parametrize("verb", [[], ["convert"], ["doctor"], ["bench", "compare"], ["train"], ["trace"]])
def test_answers(installed: Callable[..., str], verb: list[str]) -> None:
    assert "Usage: vllm-eagle" in installed("vllm-eagle", *verb, "--help")
