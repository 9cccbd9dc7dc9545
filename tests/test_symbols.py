"""What of vLLM we need is found in its sources by `tools/check_symbols.py` as it is in the imported modules."""

from __future__ import annotations

import importlib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools.check_symbols import Sources
from vllm_eagle_plugin.compat.symbols import CHAINS_V1, CHAINS_V2, TREES_V2, Symbol, missing, parameters_in

MODULES = {
    "host/__init__.py": "from .parts.base import Base as Exported\nfrom .parts import make\n",
    "host/parts/__init__.py": "def make(config, *, device): ...\n",
    "host/parts/base.py": (
        "class Root:\n    def __init__(self, config, device): ...\n    def run(self, a, b, c=None): ...\n"
        "class Base(Root):\n    def run(self, a, *, c): ...\n"
    ),
    "host/user.py": "from host import Exported\nclass User(Exported):\n    size = 1\n",
}


@pytest.fixture
def sources(tmp_path) -> Sources:
    wheel = tmp_path / "host.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in MODULES.items():
            archive.writestr(name, text)
    return Sources(zipfile.Path(wheel))


def test_methods_are_found_in_bases_and_names_where_they_were_imported_from(sources):
    there = (
        Symbol("host", "make", ("config",), ("device",)),
        Symbol("host.user", "User.run", ("a",), ("c",)),
        Symbol("host.user", "User.__init__", ("config", "device")),
        Symbol("host.user", "User"),
    )
    assert missing(there, sources.parameters_of) == []


def test_what_is_not_there_or_taken_otherwise(sources):
    gone = (
        Symbol("host.nowhere", "make"),
        Symbol("host", "break_it"),
        Symbol("host.user", "User.walk"),
        Symbol("host.user", "User.run", ("a", "b")),
        Symbol("host", "make", (), ("dtype",)),
    )
    assert missing(gone, sources.parameters_of) == [
        "host.nowhere has no make",
        "host has no break_it",
        "host.user has no User.walk",
        "User.run takes a, c; a, b were expected first",
        "make does not take dtype",
    ]


@pytest.mark.parametrize("symbol", [*CHAINS_V1, *CHAINS_V2, *TREES_V2], ids=lambda s: s.name)
def test_sources_say_what_the_imported_modules_say(symbol):
    folder = Path(find_spec("vllm").origin).parents[1]
    imported = parameters_in(importlib.import_module(symbol.module), symbol)
    assert Sources(folder).parameters_of(symbol) == imported
    assert missing([symbol], lambda s: imported) == []
