"""One self-contained page: parts that any report is made of, and their rendering.

No network, no script needed to read it; the script only sorts tables and shows figures on hover and focus.
Everything from outside (prompts, answers, names) goes through the template engine's escaping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Card:
    """A headline figure."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cards:
    cards: list[Card]
    kind: str = "cards"


@dataclass(frozen=True)
class Bar:
    """One bar; `low` and `high` draw a whisker; `hint` says more on hover."""

    label: str
    value: float | None
    text: str
    low: float | None = None
    high: float | None = None
    hint: str = ""
    #: What it measures: length (acceptance), speed, time; or flag, a figure that cannot be.
    tone: str = "length"


@dataclass(frozen=True)
class Bars:
    """Bars from `origin` to `top`, which default to 0 and the largest; `level` is a line to compare with in a
    picture, and `pictured` says whether they are in it."""

    title: str
    bars: list[Bar]
    note: str = ""
    origin: float = 0.0
    top: float | None = None
    level: float | None = None
    pictured: bool = False
    kind: str = "bars"

    def percent(self, value: float) -> float:
        """Where `value` lies on the axis, in percent of its width."""
        largest = max((v for b in self.bars for v in (b.value, b.high) if v is not None), default=1.0)
        top = self.top if self.top is not None else (largest if largest > self.origin else self.origin + 1)
        return round(min(100.0, max(0.0, 100 * (value - self.origin) / (top - self.origin))), 2)


@dataclass(frozen=True)
class Cell:
    """A table cell; `sort` is what it is sorted by."""

    text: str
    sort: float | str
    flag: bool = False


@dataclass(frozen=True)
class Grid:
    """A sortable table."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    kind: str = "grid"


@dataclass(frozen=True)
class Line:
    """A series of points (x, y); lines of the same `tone` (0 to 5) have the same colour."""

    name: str
    points: list[tuple[float, float]]
    tone: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Lines:
    """A line chart."""

    title: str
    lines: list[Line]
    x: str
    y: str
    note: str = ""
    #: A horizontal line to compare with.
    level: float | None = None
    pictured: bool = True
    kind: str = "lines"

    WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 52, 16, 14, 44

    @property
    def _spans(self) -> tuple[float, float, float, float]:
        xs = [x for line in self.lines for x, _ in line.points]
        return min(xs), max(xs), self.y_ticks[0], self.y_ticks[-1]

    def px(self, x: float) -> float:
        first, last, *_ = self._spans
        width = self.WIDTH - self.LEFT - self.RIGHT
        return round(self.LEFT + (width * (x - first) / (last - first) if last > first else width / 2), 1)

    def py(self, y: float) -> float:
        *_, low, high = self._spans
        return round(self.HEIGHT - self.BOTTOM - (self.HEIGHT - self.TOP - self.BOTTOM) * (y - low) / (high - low), 1)

    @property
    def x_ticks(self) -> list[float]:
        ticks = sorted({x for line in self.lines for x, _ in line.points})
        return ticks if len(ticks) <= 10 else ticks[:: -(-len(ticks) // 10)]

    @property
    def y_ticks(self) -> list[float]:
        ys = [y for line in self.lines for _, y in line.points] + ([self.level] if self.level is not None else [])
        return round_ticks(min(ys), max(ys))


def round_ticks(low: float, high: float) -> list[float]:
    """Four to nine multiples of 1, 2 or 5 times a power of ten that hold `low` and `high` between them."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class Piece:
    """A piece of text with a meaning: `tone` colours it, `hint` explains it, `aside` stands struck out behind it,
    `opens` is the number of the figure that it shows."""

    text: str
    tone: str
    hint: str
    aside: list[Piece] = field(default_factory=list)
    opens: int | None = None


@dataclass(frozen=True)
class Tokens:
    """Text token by token."""

    title: str
    pieces: list[Piece]
    legend: list[tuple[str, str]]
    note: str = ""
    kind: str = "tokens"


@dataclass(frozen=True)
class Branch:
    """A node of a drawn tree, and what hangs below it.

    `draft` and `target` are probabilities; `on_path` are the nodes that a thick line leads along, `passed` those
    that it goes by on its way to a sibling further down.
    """

    text: str
    tone: str
    draft: float | None
    target: float | None
    below: list[Branch] = field(default_factory=list)
    on_path: bool = False
    passed: bool = False


@dataclass(frozen=True)
class Figure:
    """A tree that is shown when a piece which `opens` its number is chosen."""

    number: int
    caption: str
    root: Branch


@dataclass(frozen=True)
class Trees:
    """Trees, one of them shown at a time; all of them in print, and without a script."""

    title: str
    figures: list[Figure]
    legend: list[tuple[str, str]]
    note: str = ""
    kind: str = "trees"


@dataclass(frozen=True)
class Facts:
    """Names and values, such as the environment."""

    title: str
    facts: list[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Notes:
    """What the reader must know."""

    title: str
    notes: list[str]
    warn: bool = False
    kind: str = "notes"


Part = Cards | Bars | Grid | Lines | Tokens | Trees | Facts | Notes


@dataclass(frozen=True)
class Report:
    """What there is to say: one sentence, what it is about, and the parts."""

    title: str
    verdict: str
    lead: str
    parts: Sequence[Part]


def render(report: Report) -> str:
    """The page as HTML."""
    folder = files(__package__)
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = template.from_string((folder / "page.html.j2").read_text())
    # Our own files, not data: they go in as they are.
    inline = {name: Markup((folder / file).read_text()) for name, file in (("css", "page.css"), ("js", "page.js"))}
    return page.render(report=report, percent=percent, **inline)


def percent(probability: float) -> str:
    """A probability in few characters."""
    if probability < 0.001:
        return "<0.1%"
    return f"{100 * probability:.1f}%" if probability < 0.1 else f"{100 * probability:.0f}%"


def plain(value: Any) -> str:
    """A fact's value as text."""
    if isinstance(value, list):
        return ", ".join(plain(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
