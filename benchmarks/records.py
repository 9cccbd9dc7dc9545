"""What is measured: one record a request, in the order in which the requests were asked.

Everything that is reported (lengths, rates, intervals, tables) is computed from these records, and they are
stored in the result, so that whoever doubts a figure can compute it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """One request as vLLM answered it."""

    model_config = ConfigDict(extra="forbid")

    question: int = Field(description="Index of the question in the prompt file; its turns belong together.")
    question_id: str = Field(description="The question's own id, or its index.")
    category: str = Field(description="As the prompt file says; empty without one.")
    turn: int = Field(0, description="0 for the first turn.")
    seed: int | None = Field(None, description="Sampling seed of this request, where one was set.")
    prompt_tokens: int
    output_tokens: int = Field(description="Tokens that were emitted.")
    token_ids: list[int] = Field(default_factory=list, description="The emitted tokens.")
    text: str = ""
    finish_reason: str | None = Field(None, description="As vLLM says: length, stop, ...")
    accepted: list[int] = Field(description="Accepted drafts of each step that had drafts.")
    drafted: list[int] = Field(description="Drafted tokens of each step that had drafts.")
    plain_steps: int | None = Field(
        None, description="Decode steps without drafts, behind the prompt's; null where it cannot be known."
    )
    trimmed: int | None = Field(
        None, description="Tokens of the last step that were counted but never emitted; null where unknown."
    )
    ttft: float = Field(description="Seconds from the request to its first token.")
    latency: float = Field(description="Seconds from the request to its last token.")
    itl: list[float] = Field(default_factory=list, description="Seconds between one arrival of tokens and the next.")

    @property
    def trimmed_accepted(self) -> int | None:
        """Accepted drafts that were counted but never emitted: the step's own token is trimmed first."""
        return None if self.trimmed is None else max(0, self.trimmed - 1)

    def step_starts(self) -> list[int]:
        """Output position [steps] at which each drafted step began (approximate where steps had no drafts)."""
        return list(accumulate((a + 1 for a in self.accepted[:-1]), initial=1)) if self.accepted else []


def with_steps(record: Record, steps: Iterable[int]) -> Record:
    """The record reduced to some of its drafted steps (by index), as for a bucket of output positions."""
    kept = sorted(steps)
    last = len(record.accepted) - 1
    return record.model_copy(
        update={
            "accepted": [record.accepted[i] for i in kept],
            "drafted": [record.drafted[i] for i in kept],
            "trimmed": record.trimmed if record.trimmed is None or last in kept else 0,
            "plain_steps": None if record.plain_steps is None else 0,
        }
    )


def questions(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records of the same question together: the unit that is resampled."""
    grouped: dict[int, list[Record]] = {}
    for record in records:
        grouped.setdefault(record.question, []).append(record)
    yield from grouped.values()
