"""Links of README and docs lead somewhere, and the commands there are ones that `vllm-eagle` knows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from vllm_eagle_plugin.cli import app

ROOT = Path(__file__).parents[1]
FILES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?(?: \"[^\"]*\")?\)")


def anchors(file: Path) -> set[str]:
    """Those of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", file.read_text())
    headings = [re.sub(r"\[([^\]]*)\]\([^)]*\)|`", r"\1", h) for h in re.findall(r"(?m)^#+ (.+)$", text)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`(?!\])", "", file.read_text())
    for path, anchor in LINK.findall(text):
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), f"{path} is not there"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{path} has no heading #{anchor}"


@pytest.mark.parametrize("file", sorted(ROOT.glob("docs/*.md")), ids=lambda f: f.stem)
def test_guides_are_short(file: Path) -> None:
    assert file.stem == "measurements" or len(file.read_text().split()) < 1500


def commands(file: Path) -> Iterator[list[str]]:
    """The words of each `vllm-eagle` command that a page prints as a block of code, without prompts and comments."""
    text = file.read_text().replace("\\\n", " ")
    for line in re.findall(r"(?m)^ {4,}(?:[A-Z_]+=\S+ )*vllm-eagle (.+)$", text):
        yield [word for word in shlex.split(line, comments=True) if word != "..."]


def unknown(words: list[str]) -> str:
    """What is wrong with a command, in the command line's words; empty: nothing."""
    try:
        command = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(command.name, words)
    except Exception as error:
        return f"{type(error).__name__}: {getattr(error, 'message', error)}"
    return ""


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_commands_are_known(file: Path) -> None:
    assert [(shlex.join(words), why) for words in commands(file) if (why := unknown([*words]))] == []


def test_an_unknown_command_is_noticed() -> None:
    assert unknown(["bench", "sweep", "--target", "T", "-k", "4"]) == ""
    assert "--shape" in unknown(["bench", "sweep", "--target", "T", "--shape", "4"])
    assert "KeyError" in unknown(["mend", "HEAD"])
    assert sum(len([*commands(file)]) for file in FILES) > 30
