"""The figures that are followed from release to release: one JSON line a run, in a file of the repository.

A line holds where and when it was measured, and figures by name. Only lines of the same hardware, target and head are
compared; a figure whose interval does not meet the earlier one's has changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from vllm_eagle_plugin.benchmarks.schema import Environment, Figure, Model

from vllm_eagle_plugin.errors import HeadError


class Line(Model):
    """One run of `reproduce`."""

    environment: Environment
    target: str
    head: str
    head_sha256: str | None = Field(description="Converted again or trained again, a head keeps its name only.")
    quick: bool = Field(description="Whether so little was asked that the figures mean nothing.")
    failed: list[str] = Field(description="What was asked for and did not come to an end.")
    figures: dict[str, Figure]


def read(file: Path) -> list[Line]:
    """The lines of a history; none if there is no such file.

    Raises:
        HeadError: a line is not one.
    """
    if not file.exists():
        return []
    lines = []
    for number, text in enumerate(file.read_text().splitlines(), 1):
        try:
            lines.append(Line.model_validate_json(text))
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise HeadError(f"{file}, line {number}: {where}", "A line that `reproduce` wrote was expected") from None
    return lines


def append(file: Path, line: Line) -> None:
    """Add a line."""
    with file.open("a") as history:
        history.write(line.model_dump_json() + "\n")


def changes(lines: Sequence[Line], now: Line) -> Iterator[tuple[str, str, Figure, Figure, bool]]:
    """Each figure against the last on the same hardware and of models of the same names, where there is one.

    Yields name, date before, before, now, and whether the intervals are apart.
    """
    same = [line for line in lines if _conditions(line) == _conditions(now)]
    for name, figure in now.figures.items():
        for line in reversed(same):
            if name in line.figures:
                before = line.figures[name]
                yield name, line.environment.date, before, figure, apart(before, figure)
                break


def _conditions(line: Line) -> tuple[Any, ...]:
    return line.environment.hardware, line.target, line.head, line.quick


def apart(one: Figure, other: Figure) -> bool:
    """Whether two figures' intervals do not meet; False where one has none."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.high < other.low or other.high < one.low
