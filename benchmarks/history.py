"""The figures that are followed from release to release: one JSON line a run, in a file of the repository.

A line holds where and when it was measured, and figures by name. Only lines of the same hardware, target and head are
compared; a figure whose interval does not meet the earlier one's has changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from ..errors import HeadError
from .schema import AcceptanceResult, Environment, Figure, Model, read_result
from .speed import Compare, Row, Sweep


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
            first = error.errors()[0]
            raise HeadError(
                f"{file}, line {number}: {'.'.join(map(str, first['loc']))}: {first['msg']}",
                "A line that `reproduce` wrote was expected",
                "Repair it, or give another file with --history",
            ) from None
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


def figures(folder: Path, names: Sequence[str]) -> dict[str, Figure]:
    """The figures of the results `names` in a folder, by name."""
    found: dict[str, Figure] = {}
    for name in names:
        of = _READERS.get(name, _compared)
        found |= {f"{name}: {what}": figure for what, figure in of(folder / f"{name}.json")}
    return found


def _accepted(file: Path) -> Iterator[tuple[str, Figure]]:
    yield "acceptance length", read_result(file, AcceptanceResult).eagle.acceptance.acceptance_length


def _compared(file: Path) -> Iterator[tuple[str, Figure]]:
    yield from _rows(read_result(file, Compare).rows)


def _rows(rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    for row in rows:
        if row.acceptance is None:
            yield "plain tokens per second", row.tokens_per_second
        else:
            yield f"speedup, {row.name}", row.speedup
            yield f"acceptance length, {row.name}", row.acceptance.acceptance_length


def _swept(file: Path) -> Iterator[tuple[str, Figure]]:
    result = read_result(file, Sweep)
    for name, cost in result.cost.model_dump().items():
        yield f"cost, {name}", Figure(value=cost)
    if result.held_out:
        yield "largest error of a k that was left out", Figure(value=max(abs(p.error) for p in result.held_out))
    yield from _rows(result.trees)


def _drafted(file: Path) -> Iterator[tuple[str, Figure]]:
    for title, rows in json.loads(file.read_text())["figures"].items():
        for case, by_batch in rows.items():
            for batch, found in by_batch.items():
                yield f"{title}, {case}, batch {batch}", Figure(value=found["median"])


def _overhead(file: Path) -> Iterator[tuple[str, Figure]]:
    for tokens, found in json.loads(file.read_text())["contexts"].items():
        yield f"step, {tokens} tokens", Figure(**found["step"]["ratio"])


def _converted(file: Path) -> Iterator[tuple[str, Figure]]:
    found = json.loads(file.read_text())
    for name in ("speed_against_copying", "peak_bytes"):
        yield name.replace("_", " "), Figure(value=found[name])


def _demonstrated(file: Path) -> Iterator[tuple[str, Figure]]:
    found = json.loads(file.read_text())
    yield "acceptance length", Figure(value=found["spec_decode_acceptance_length"])
    speeds = found["tokens_per_second"]
    yield "speedup", Figure(value=speeds["speculative"] / speeds["plain"])


#: How each result is read; the others are comparisons.
_READERS = {
    "acceptance": _accepted,
    "sweep": _swept,
    "tree_shapes": _swept,
    "tree_overhead": _overhead,
    "draft_step": _drafted,
    "convert_speed": _converted,
    "demo": _demonstrated,
}
