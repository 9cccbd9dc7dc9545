"""The figures that README and docs quote: one small JSON each, and the tables that are made of them.

    python -m experiments.results      # write the tables of README and docs anew

In a document, a table of the result NAME stands behind `<!-- result: NAME -->`; a figure elsewhere is a link whose
title says where it is from: `[1.43](measurements.md "heads_speed; eagle3; acceptance length")`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError
from vllm_eagle_plugin.benchmarks.schema import Figure, Model

from vllm_eagle_plugin.errors import HeadError

FOLDER = Path(__file__).with_name("results")
ROOT = FOLDER.parents[1]
DOCUMENTS = ("README.md", "docs/*.md", "examples/*/README.md")
#: A value, one with the bounds of its interval, or words.
Cell = float | tuple[float, float, float] | str | None
BLOCK = re.compile(r"<!-- result: (\w+) -->\n(?:\|[^\n]*\n)*(?:\n\d{4}-\d\d-\d\d, commit [^\n]+\n)?")
QUOTE = re.compile(r'\[([^\]]+)\]\([^)"]* "(\w+); ([^;"]+); ([^;"]+)"\)')


class Result(Model):
    """A table of figures, and where they come from."""

    what: str = Field(description="One sentence.")
    date: str = Field(description="The day it was measured.")
    commit: str = Field(description="The code that measured, or the first commit that holds the figures.")
    machine: str
    command: str
    not_repeatable: str | None = Field(
        default=None, description="Why the command does not give these figures any more."
    )
    first: str = Field(description="Heading of the rows' names.")
    columns: dict[str, int] = Field(description="Digits behind the point, by heading.")
    rows: dict[str, list[Cell]]

    def cell(self, row: str, column: str) -> Cell:
        """One figure.

        Raises:
            HeadError: there is none.
        """
        if row not in self.rows or column not in self.columns:
            raise HeadError(f"no figure {row}; {column}", f"Rows: {', '.join(self.rows)}; {', '.join(self.columns)}")
        return self.rows[row][list(self.columns).index(column)]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Every number by name, as the history has them."""
        for row, cells in self.rows.items():
            for column, cell in zip(self.columns, cells, strict=True):
                if isinstance(cell, tuple):
                    yield f"{column}, {row}", Figure(value=cell[0], low=cell[1], high=cell[2])
                elif isinstance(cell, float):
                    yield f"{column}, {row}", Figure(value=cell)


def text(cell: Cell, digits: int) -> str:
    """A cell as a table has it."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    if isinstance(cell, tuple):
        value, low, high = (f"{number:.{digits}f}" for number in cell)
        return f"{value} ({low} to {high})"
    return f"{cell:.{digits}f}"


def table(name: str, result: Result) -> str:
    """The block of a document, from its mark on."""
    lines = [[result.first, *result.columns], ["---"] * (1 + len(result.columns))]
    for row, cells in result.rows.items():
        lines.append([row, *(text(c, digits) for c, digits in zip(cells, result.columns.values(), strict=True))])
    rows = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    about = f"{result.date}, commit `{result.commit}`, {result.machine}: `{result.command}`."
    if result.not_repeatable:
        about += f" Not repeatable: {result.not_repeatable}."
    return f"<!-- result: {name} -->\n{rows}\n\n{about}\n"


def read(name: str) -> Result:
    """A result of the repository.

    Raises:
        HeadError: there is none, or it is none.
    """
    file = FOLDER / f"{name}.json"
    try:
        return Result.model_validate_json(file.read_text())
    except (OSError, ValidationError) as error:
        raise HeadError(f"{file} cannot be read: {error}", "A result was expected") from None


def write(name: str, result: Result, folder: Path = FOLDER) -> None:
    """Store a result, in place of an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(f"  {_json(row)}: {_json(cells)}" for row, cells in result.rows.items())
    head = result.model_dump(exclude={"rows"}, exclude_none=True)
    about = "".join(f" {_json(key)}: {_json(value)},\n" for key, value in head.items())
    (folder / f"{name}.json").write_text(f'{{\n{about} "rows": {{\n{rows}\n }}\n}}\n')


def _json(value: object) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def documents() -> list[Path]:
    """Every document that may quote figures."""
    return sorted(file for pattern in DOCUMENTS for file in ROOT.glob(pattern))


def renewed(document: str) -> str:
    """A document with its tables as the results have them."""
    return BLOCK.sub(lambda block: table(block[1], read(block[1])), document)


def misquoted(document: str) -> Iterator[str]:
    """Figures of a document's sentences that are not those of the results, in words."""
    for shown, name, row, column in QUOTE.findall(document):
        cell = read(name).cell(row, column)
        numbers = re.findall(r"\d[\d,]*(?:\.\d+)?", shown)
        values = cell if isinstance(cell, tuple) else (cell,)
        if isinstance(cell, str):
            right = cell == shown
        else:
            pairs = list(zip(numbers, values, strict=False))
            right = bool(pairs) and len(numbers) <= len(values) and all(_same(n, v) for n, v in pairs)
        if not right:
            yield f"{shown}: {name}; {row}; {column} is {cell}"


def _same(shown: str, value: float | str | None) -> bool:
    digits = len(shown.partition(".")[2])
    return isinstance(value, float) and f"{value:.{digits}f}" == shown.replace(",", "")


if __name__ == "__main__":
    for document in documents():
        document.write_text(renewed(document.read_text()))
