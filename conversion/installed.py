"""What the vLLM at hand knows: its architectures, and which targets it takes aux hidden states from.

Read from its source files without importing them, so that it costs milliseconds and works on a machine whose
vLLM cannot start (one built for CUDA, on a login node). Where none is installed, the table of `VERSION` speaks.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from ..compat.versions import vllm_distribution

#: The version whose table lies beside this file.
VERSION = "0.32.0"
_TABLE = Path(__file__).with_name(f"vllm-{VERSION}.json")
_MODELS = "model_executor/models"
_INTERFACE = "SupportsEagle3"


class KnownVllm:
    """A version of vLLM, asked about architectures."""

    def __init__(self, version: str, aux: Mapping[str, bool] | None, package: Path | None = None) -> None:
        """`aux`: each name of its registry, and whether that class hands aux hidden states over; None: ask `package`."""
        self.version, self.installed = version, package is not None
        self._aux, self._sources = aux, None if package is None else _Sources(package)
        self._names = set(aux or ()) if self._sources is None else set(self._sources.registry)

    def __str__(self) -> str:
        return f"vLLM {self.version}" + ("" if self.installed else " (by its table: none is installed)")

    def knows(self, architecture: str) -> bool:
        return architecture in self._names

    def hands_over_aux(self, architecture: str) -> bool | None:
        """Whether an EAGLE-3 head can be served for this target; None for targets that it has no class for."""
        if not self.knows(architecture):
            return None
        return self._aux[architecture] if self._aux is not None else self._sources.has_interface(architecture)  # type: ignore[union-attr]

    def resolves_draft(self, method: str, name: str) -> bool:
        """Whether a draft head's architecture is found, once `Eagle` or `Eagle3` is put in front as vLLM does."""
        if method == "eagle":
            return self.knows(name) and (name.startswith("Eagle") or self.knows(f"Eagle{name}"))
        own = name.startswith(("Eagle3", "PEagle", "Peagle")) or name.endswith("Eagle3")
        return self.knows(name) and (own or self.knows(f"Eagle3{name}"))


@functools.cache
def known_vllm() -> KnownVllm:
    """The installed vLLM; the table's where there is none, or its sources are not as they were."""
    found, package = vllm_distribution(), importlib.util.find_spec("vllm")
    if found is not None and package is not None and package.submodule_search_locations:
        known = KnownVllm(found[1], None, Path(next(iter(package.submodule_search_locations))))
        if known.knows("LlamaForCausalLM"):
            return known
    return KnownVllm(VERSION, json.loads(_TABLE.read_text(encoding="utf-8")))


def table_of(package: Path) -> dict[str, bool]:
    """All that `KnownVllm` asks of the sources in `package`, to be kept as a table."""
    sources = _Sources(package)
    return {name: sources.has_interface(name) for name in sorted(sources.registry)}


def _entries(table: ast.Dict) -> dict[str, tuple[str, str]]:
    """`"Architecture": ("module", "Class")` of a dict in the source."""
    found = {}
    for key, value in zip(table.keys, table.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(value, ast.Tuple) and len(value.elts) == 2:
            module, cls = (e.value if isinstance(e, ast.Constant) else None for e in value.elts)
            if isinstance(key.value, str) and isinstance(module, str) and isinstance(cls, str):
                found[key.value] = (module, cls)
    return found


class _Sources:
    """vLLM's registry, its classes and their bases, from its files."""

    def __init__(self, package: Path) -> None:
        self._package = package
        self._trees: dict[Path, list[ast.stmt]] = {}

    @functools.cached_property
    def registry(self) -> dict[str, tuple[str, str]]:
        """Module and class of every architecture; empty where the registry is not what it was."""
        entries: dict[str, tuple[str, str]] = {}
        try:
            tree = ast.parse((self._package / _MODELS / "registry.py").read_text(encoding="utf-8"))
        except (OSError, SyntaxError):
            return entries
        for node in tree.body:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            if isinstance(value, ast.Dict):
                entries.update(_entries(value))
        return entries

    def has_interface(self, architecture: str) -> bool:
        """Whether the class of an architecture has vLLM's interface for EAGLE-3 targets."""
        module, cls = self.registry[architecture]
        inside = module.split(".")[1:] if module.startswith("vllm.") else [*_MODELS.split("/"), module]
        return self._inherits(self._file(self._package.joinpath(*inside)), cls, frozenset())

    def _inherits(self, file: Path, cls: str, seen: frozenset[tuple[Path, str]]) -> bool:
        if (file, cls) in seen:
            return False
        seen |= {(file, cls)}
        for node in self._statements(file):
            if isinstance(node, ast.ClassDef) and node.name == cls:
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                return _INTERFACE in bases or any(self._inherits(file, base, seen) for base in bases)
        for node in self._statements(file):
            if isinstance(node, ast.ImportFrom):
                original = next((a.name for a in node.names if (a.asname or a.name) == cls), None)
                if original and self._inherits(self._imported(file, node), original, seen):
                    return True
        return False

    def _imported(self, file: Path, node: ast.ImportFrom) -> Path:
        if node.level:
            start = file.parents[node.level - 1]
            return self._file(start.joinpath(*(node.module or "").split(".")))
        if (node.module or "").startswith("vllm."):
            return self._file(self._package.joinpath(*str(node.module).split(".")[1:]))
        return Path()

    def _file(self, path: Path) -> Path:
        return path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")

    def _statements(self, file: Path) -> list[ast.stmt]:
        """Statements of a file, those under conditions too."""
        if file not in self._trees:
            try:
                tree = ast.parse(file.read_text(encoding="utf-8"))
            except (OSError, SyntaxError, ValueError):
                tree = ast.Module([], [])
            self._trees[file] = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.ImportFrom)]
        return self._trees[file]
