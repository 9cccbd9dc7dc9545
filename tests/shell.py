"""`vllm-eagle` run in this process, and what it leaves behind."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vllm_eagle_plugin import cli

from .plain_heads import MAKERS, Head


@dataclass
class Shell:
    """Runs `vllm-eagle` in this process and looks at everything it leaves."""

    folder: Path
    target: Any
    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def head(self, producer: str) -> Head:
        head = MAKERS[producer]()
        if producer == "surgery":
            head.tensors["embeddings.weight"] = self.target.embedding.clone()
        return head

    def run(self, *arguments: Any) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["vllm-eagle", *map(str, arguments)])
        self.capfd.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code or 0
        out, err = self.capfd.readouterr()
        return code, out, err

    def convert(self, head: Path, *options: Any, target: Any = None) -> tuple[int, str, str]:
        arguments = ["--target", target or self.target.folder, "-o", self.output, "--no-verify"]
        return self.run("convert", head, *arguments, *options)

    def files(self) -> dict[str, bytes | None]:
        return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(self.folder.rglob("*"))}

    def refuse(self, what: tuple[str, ...], *arguments: Any, code: int = 1, convert: bool = True, **kw: Any) -> str:
        """The command fails with `code` and one line that says `what`, and touches no file."""
        before = self.files()
        found, out, err = self.convert(*arguments, **kw) if convert else self.run(*arguments)
        assert_one_error(found, out, err, what, code)
        assert self.files() == before, "files were left behind or changed"
        return err


def assert_one_error(found: int, out: str, err: str, what: tuple[str, ...], code: int = 1) -> None:
    assert found == code, err
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith((".\n", "?\n"))
    assert err.count("\n") == 1, f"not one line:\n{err}"
    assert "Traceback" not in err
    for part in what:
        assert part in err
    assert err.count(". ") + err.count("? ") >= 1, f"says what was found, but not what was expected: {err}"
