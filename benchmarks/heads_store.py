"""What the comparison of heads has measured so far: one JSON file, written anew with every measurement."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..errors import UsageError
from .schema import SCHEMA_VERSION, AcceptanceResult, Environment, Figure, Model, read_result
from .speed import Compare


class Length(Model):
    """How much one head accepts at one k and temperature."""

    head: str
    weights: str = Field(description="First digits of the head's SHA-256.")
    parameters: int = Field(description="Numbers in the head's own weight files.")
    num_speculative_tokens: int
    temperature: float
    acceptance_length: Figure
    per_position: list[Figure]


class Speed(Model):
    """What one head buys at one k: greedily, one request at a time."""

    head: str
    weights: str
    num_speculative_tokens: int
    questions: int
    max_tokens: int
    speedup: Figure = Field(description="Tokens per second over plain decoding's, in the same interleaved run.")
    step_ms: float | None = Field(description="Mean milliseconds of a decode step; null: not seen.")
    draft_ms: float | None = Field(description="Those of drafting in it.")
    plain_ms: float | None = Field(description="Those of a step of plain decoding, in the same run.")


class Heads(Model):
    """What the command writes."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["heads"] = "heads"
    target: str
    prompts: str
    prompts_sha256: str
    questions: int
    max_tokens: int
    concurrency: int = Field(description="Requests at a time where acceptance was measured; speed is always of one.")
    engine: dict[str, Any] = Field(default_factory=dict)
    environments: list[Environment] = Field(default_factory=list, description="Each machine and set of versions.")
    lengths: list[Length] = Field(default_factory=list)
    speeds: list[Speed] = Field(default_factory=list)


class Store:
    """The file, and what is in it."""

    def __init__(self, file: Path, found: Heads) -> None:
        self.file, self.found = file, found

    @classmethod
    def open(
        cls, file: Path, target: str, prompts: str, sha256: str, questions: int, max_tokens: int, concurrency: int
    ) -> Store:
        """The file as it is, or a new one.

        Raises:
            UsageError: it is of another target or other questions.
        """
        asked = Heads(
            target=target, prompts=prompts, prompts_sha256=sha256, questions=questions, max_tokens=max_tokens,
            concurrency=concurrency,
        )  # fmt: skip
        if not file.exists():
            return cls(file, asked)
        found = read_result(file, Heads)
        if any(getattr(found, n) != getattr(asked, n) for n in ("target", "prompts_sha256", "max_tokens")):
            raise UsageError(
                f"{file} is of another target or other questions", "", "Choose another --output, or remove it"
            )
        return cls(file, found)

    def has_length(self, head: str, weights: str, k: int, temperature: float) -> bool:
        key = (head, weights, k, temperature)
        rows = self.found.lengths
        return any((row.head, row.weights, row.num_speculative_tokens, row.temperature) == key for row in rows)

    def has_speed(self, head: str, weights: str, k: int, questions: int, max_tokens: int) -> bool:
        key = (head, weights, k, questions, max_tokens)
        return any(
            (row.head, row.weights, row.num_speculative_tokens, row.questions, row.max_tokens) == key
            for row in self.found.speeds
        )

    def check_engine(self, engine: dict[str, Any]) -> None:
        """Raises UsageError where the others were measured with other engine settings."""
        if self.found.lengths and self.found.engine != engine:
            differ = sorted(k for k in {*engine, *self.found.engine} if engine.get(k) != self.found.engine.get(k))
            raise UsageError(
                f"{self.file} was measured with another {', '.join(differ)}",
                "",
                "Choose another --output, or remove it",
            )

    def add_length(self, head: Path, weights: str, run: AcceptanceResult) -> None:
        """Take in one run; what was measured of earlier weights of this head goes."""
        work, figures = run.eagle.workload, run.eagle.acceptance
        row = Length(
            head=head.name,
            weights=weights,
            parameters=parameters(head),
            num_speculative_tokens=work.num_speculative_tokens,
            temperature=work.temperature,
            acceptance_length=figures.acceptance_length,
            per_position=figures.per_position,
        )
        self._forget(head.name, weights)
        self.found.lengths.append(row)
        self.found.engine = work.engine
        self._write(run.eagle.environment)

    def add_speeds(self, head: Path, weights: str, run: Compare) -> None:
        """Take in one run, in place of earlier ones of this head."""
        steps = {row.num_speculative_tokens: row.step_ms for row in run.rows}
        self._forget(head.name, weights)
        self.found.speeds = [row for row in self.found.speeds if row.head != head.name] + [
            Speed(
                head=head.name,
                weights=weights,
                num_speculative_tokens=row.num_speculative_tokens,
                questions=run.questions,
                max_tokens=run.max_tokens,
                speedup=row.speedup,
                step_ms=row.step_ms.total if row.step_ms else None,
                draft_ms=row.step_ms.draft if row.step_ms else None,
                plain_ms=plain.total if (plain := steps.get(0)) else None,
            )
            for row in run.rows
            if row.num_speculative_tokens
        ]
        self._write(run.environment)

    def _forget(self, head: str, weights: str) -> None:
        found = self.found
        found.lengths = [row for row in found.lengths if row.head != head or row.weights == weights]
        found.speeds = [row for row in found.speeds if row.head != head or row.weights == weights]

    def _write(self, environment: Environment) -> None:
        known = [(e.hardware, e.versions) for e in self.found.environments]
        if (environment.hardware, environment.versions) not in known:
            self.found.environments.append(environment)
        half = self.file.with_suffix(".part")
        half.write_text(self.found.model_dump_json(indent=1) + "\n")
        half.replace(self.file)


def parameters(head: Path) -> int:
    """Numbers in a head's weight files, token maps and copies of the target's lm_head (Medusa) left out."""
    from safetensors import safe_open

    total, copied = 0, head_config(head).get("original_lm_head", False)
    for file in sorted(head.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118, it is no dictionary
                part = opened.get_slice(name)
                counts = part.get_dtype() in ("BF16", "F16", "F32") and not (copied and name.startswith("lm_head"))
                total += math.prod(part.get_shape()) if counts else 0
    return total


def head_config(head: Path) -> dict[str, Any]:
    """config.json of a head; empty for one on the hub."""
    try:
        found = json.loads((head / "config.json").read_text())
    except (OSError, ValueError):
        return {}  # a head on the hub, or one that `check_head` refuses
    return found if isinstance(found, dict) else {}
