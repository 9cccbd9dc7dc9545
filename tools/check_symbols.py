"""Hold what of vLLM we need against the sources of a version that cannot run here.

    python tools/check_symbols.py WHEEL

Reads a wheel of vLLM as the zip file it is; nothing is imported from it. Exit code 1 if something is missing.
"""

from __future__ import annotations

import ast
import sys
import zipfile
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from vllm_eagle_plugin.compat import symbols


class Sources:
    """The modules under a folder, or in a wheel, parsed when they are asked for."""

    def __init__(self, root: Path | zipfile.Path) -> None:
        self._root = root

    def parameters_of(self, symbol: symbols.Symbol) -> list[str] | None:
        """As `symbols.missing` asks; methods are found in base classes too, names where they were imported from."""
        owner, _, method = symbol.name.rpartition(".")
        found = self._find(symbol.module, owner or method)
        if owner and found is not None:
            found = self._method(*found, method)
        if found is None:
            return None
        node = found[1]
        if not isinstance(node, ast.FunctionDef):
            return []
        arguments = node.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        return names[1:] if owner else names

    @cache  # noqa: B019 (one object, one run)
    def _parsed(self, module: str) -> tuple[str, ast.Module] | None:
        """The package that a module's relative imports start from, and its tree."""
        path = module.replace(".", "/")
        for name, package in ((f"{path}.py", module.rpartition(".")[0]), (f"{path}/__init__.py", module)):
            if (file := self._root.joinpath(name)).is_file():
                return package, ast.parse(file.read_text(encoding="utf-8"))
        return None

    def _find(self, module: str, name: str) -> tuple[str, ast.AST] | None:
        """Where a name of a module is defined, and how."""
        if (parsed := self._parsed(module)) is None:
            return None
        package, tree = parsed
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        base = package.rsplit(".", node.level - 1)[0] if node.level else ""
                        return self._find(".".join(filter(None, (base, node.module))), alias.name)
        defined = (ast.FunctionDef, ast.ClassDef)
        return next(((module, n) for n in tree.body if isinstance(n, defined) and n.name == name), None)

    def _method(self, module: str, owner: ast.AST, name: str) -> tuple[str, ast.AST] | None:
        if not isinstance(owner, ast.ClassDef):
            return None
        for node in owner.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return module, node
        for base in owner.bases:
            if isinstance(base, ast.Name) and (above := self._find(module, base.id)) is not None:
                found = self._method(*above, name)
                if found is not None:
                    return found
        return None


def main() -> None:
    wheel = Path(sys.argv[1])
    needed = {name: part for name, part in vars(symbols).items() if name.isupper() and not name.startswith("_")}
    sources = Sources(zipfile.Path(wheel))
    problems = [p for part in needed.values() for p in symbols.missing(part, sources.parameters_of)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{wheel.name}: {sum(map(len, needed.values()))} symbols looked for, {len(problems)} problems")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
