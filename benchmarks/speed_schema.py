"""Models of what `bench compare` and `bench sweep` report."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from .records import Record
from .schema import SCHEMA_VERSION, Acceptance, Environment, Figure, Model, StepTimes


class Row(Model):
    """One way to decode, against plain decoding of the same questions in the same run."""

    name: str
    speculative_config: dict[str, Any] | None
    num_speculative_tokens: int
    concurrency: int
    output_tokens: int
    tokens_per_second: Figure
    speedup: Figure = Field(description="Tokens per second over those of plain decoding, interval over blocks.")
    median_ttft_ms: float
    mean_itl_ms: float = Field(description="Between arrivals of tokens; several tokens may arrive at once.")
    mean_tpot_ms: float
    acceptance: Acceptance | None
    implied_overhead: float | None = Field(
        None, description="Tokens per step / speedup - 1: what a step costs beyond a plain one."
    )
    impossible: str | None = Field(None, description="Why the speedup cannot be true; null where it can.")
    step_ms: StepTimes | None = None
    identical: int | None = Field(None, description="Answers equal to plain decoding's; null above temperature 0.")
    tied: int | None = Field(None, description="Answers that differ from it at a numeric tie.")
    wrong: int | None = Field(None, description="Answers that differ from it, and by no tie.")
    answers: int

    @model_validator(mode="after")
    def _flagged(self) -> Row:
        if (self.impossible is None) != (impossible(self) is None):
            raise ValueError(f"{self.name}: a speedup above the acceptance length must be flagged, and no other")
        return self


def impossible(row: Row) -> str | None:
    """Why a row's speedup cannot be true, or None.

    A step costs at least what a plain step costs and yields at most the acceptance length on average.
    """
    length = row.acceptance.acceptance_length.value if row.acceptance else None
    bound, speedup = length or 1.0, row.speedup.value
    if speedup is None or row.speculative_config is None or speedup <= bound:
        return None
    beyond = row.speedup.low is not None and row.speedup.low > bound
    return f"speedup {speedup:.2f} is above the acceptance length {bound:.2f}: " + (
        "beyond noise, so plain decoding was slowed down by something else" if beyond else "noise, measure longer"
    )


class Difference(Model):
    """Where an answer at temperature 0 leaves plain decoding's."""

    name: str
    question_id: str
    position: int = Field(description="First output position that differs, from 0.")
    plain_token: int | None = Field(description="null where plain decoding's answer ended.")
    token: int | None
    logit_gap: float | None = Field(
        description="Plain's logit of its token less that of the other one; null where not both are there."
    )
    tie: bool | None = Field(description="Whether the gap is within the rounding of the dtype.")


class Compare(Model):
    """The result of `bench compare`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["compare"] = "compare"
    partial: str | None = None
    target: str
    prompts: str
    prompts_sha256: str
    temperature: float
    max_tokens: int
    questions: int
    rounds: int
    fresh: bool = Field(False, description="Engines were started anew for each round; intervals are over rounds.")
    engine: dict[str, Any]
    environment: Environment
    rows: list[Row]
    differences: list[Difference]
    tie_tolerance: float
    notes: list[str] = Field(default_factory=list)
    requests: dict[str, list[Record]] = Field(default_factory=dict)


class Cost(Model):
    """The fitted cost of one step in milliseconds, for B requests with k drafts each: see cost_model.py."""

    fixed: float = Field(description="The target, whatever the step does.")
    per_request: float = Field(description="The target, per request.")
    per_row: float = Field(description="The target, per row that it verifies: B (k + 1) of them for chains.")
    rejecting: float = Field(description="The target, once per step with drafts.")
    drafting: float = Field(description="The drafter, once per step with drafts.")
    per_draft: float = Field(description="The drafter, per draft position.")
    per_draft_request: float = Field(description="The drafter, per draft position and request.")
    rms_error: float = Field(description="Root mean square of the relative errors of the fit.")


class Prediction(Model):
    """A setting that was left out of the fit, predicted and measured."""

    num_speculative_tokens: int
    concurrency: int
    predicted: float
    measured: float
    error: float = Field(description="predicted / measured - 1")


class Advice(Model):
    """What to set at a batch size: by what was measured, and by the cost model of chains."""

    concurrency: int
    best: str = Field(default="", description="The fastest way that was measured, chains and trees.")
    measured: Figure = Field(default=Figure(value=None), description="Its speedup.")
    command: str | None = Field(
        default=None, description="Serves it; null where it is no faster than plain decoding for sure."
    )
    best_k: int = Field(description="By the model; 0: do not speculate.")
    speedup: float = Field(description="Decode speedup there, by the model.")
    break_even_length: float = Field(description="Acceptance length at which k = best (or 1) starts to pay.")
    speedup_if_perfect: float = Field(description="Every draft accepted, at the best k for that.")


class Synthetic(Model):
    """What a better head would buy, by the model and by vLLM's synthetic acceptance."""

    acceptance_length: float
    num_speculative_tokens: int
    concurrency: int
    predicted: float
    measured: float | None
    error: float | None


class Sweep(Model):
    """The result of `bench sweep`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["sweep"] = "sweep"
    partial: str | None = None
    target: str
    prompts: str
    prompts_sha256: str
    max_tokens: int
    questions: int
    engine: dict[str, Any]
    environment: Environment
    rows: list[Row]
    trees: list[Row] = Field(default_factory=list, description="Draft trees; the cost model knows nothing of them.")
    conditional: list[float] = Field(description="Conditional acceptance rates by position, all runs together.")
    cost: Cost
    held_out: list[Prediction]
    advice: list[Advice]
    synthetic: list[Synthetic]
    notes: list[str] = Field(default_factory=list)
