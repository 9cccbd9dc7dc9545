"""The result files, as models: what is written is validated, and what is read back is too.

The names at the top level are those of `vllm bench serve --save-result`; what vLLM does not have stands under
`eagle`. See docs/report-schema.md.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import HeadError
from .records import Record

#: Raised when a field changes its meaning or goes away; new fields do not raise it.
SCHEMA_VERSION: Final = 1
#: Room for the rounding of sums of floats.
EPSILON = 1e-9


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Figure(Model):
    """A figure and its 95% interval over questions; both null where nothing was counted."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Acceptance(Model):
    """Acceptance of some requests. Definitions: statistics.py and docs/report-schema.md."""

    questions: int
    requests: int
    num_drafts: int
    draft_tokens: int
    accepted_tokens: int
    acceptance_length: Figure
    acceptance_rate: Figure
    per_position: list[Figure] = Field(description="Unconditional, as vLLM's; [k].")
    conditional: list[Figure] = Field(description="Given that all before were accepted and this one drafted; [k].")
    expected_length: Figure = Field(description="From the conditional rates: every step drafting all k.")
    tokens_per_step: Figure = Field(description="Emitted tokens per decode step, steps without drafts included.")
    emitted_length: Figure = Field(description="Tokens really emitted per drafted step.")
    trimmed_tokens: int | None = Field(description="Counted but never emitted; null where it cannot be known.")
    trimmed_accepted_tokens: int | None = Field(description="Accepted drafts among them.")

    @model_validator(mode="after")
    def _holds(self) -> Acceptance:
        broken = broken_invariant(self)
        if broken:
            raise ValueError(f"impossible acceptance figures: {broken}")
        return self


def broken_invariant(figures: Acceptance) -> str | None:
    """What is impossible about `figures`, or None.

    A draft position is only counted when all before it were: rates never rise, they add up to the length
    less the target's own token, and the length stays within 1 and k + 1.
    """
    length, rates = figures.acceptance_length.value, [rate.value for rate in figures.per_position]
    if length is None:
        return None if figures.num_drafts == 0 else f"no acceptance length for {figures.num_drafts} drafts"
    numbers = [rate for rate in rates if rate is not None]
    if len(numbers) != len(rates):
        return "a rate is missing"
    if not 1 - EPSILON <= length <= len(rates) + 1 + EPSILON:
        return f"length {length} is not within 1 and k + 1 = {len(rates) + 1}"
    if any(later > earlier + EPSILON for earlier, later in itertools.pairwise(numbers)):
        return f"rates {numbers} rise"
    if abs(sum(numbers) - (length - 1)) > EPSILON * max(1, len(numbers)):
        return f"rates add up to {sum(numbers)}, and the length less one is {length - 1}"
    if abs(length - 1 - figures.accepted_tokens / figures.num_drafts) > EPSILON:
        return f"length {length} is not 1 + {figures.accepted_tokens} / {figures.num_drafts}"
    if figures.accepted_tokens > figures.draft_tokens:
        return f"{figures.accepted_tokens} accepted of {figures.draft_tokens} drafted"
    return None


class Group(Model):
    """Acceptance of the requests, or of the steps, that have something in common."""

    name: str
    acceptance: Acceptance


class StepTimes(Model):
    """Mean milliseconds of one engine step, by what they were spent on; decode steps only."""

    steps: int
    total: float
    draft: float = Field(description="Drafting: the proposer.")
    verify: float = Field(description="The target's forward pass and sampling, over the drafts too.")
    scheduling: float = Field(description="vLLM's scheduler: choosing, and booking what came out.")
    other: float = Field(description="The rest: preparing inputs, detokenising, this tool.")


class Environment(Model):
    """Where and how it ran."""

    date: str
    command: str
    hardware: dict[str, Any]
    versions: dict[str, str]
    load_average: list[float] = Field(description="One minute, before and after.")


class Workload(Model):
    """What was asked."""

    target: str
    method: str
    head: str | None = None
    head_sha256: str | None = None
    num_speculative_tokens: int
    prompts: str
    prompts_sha256: str = Field(description="Of the questions as they were asked.")
    temperature: float
    max_tokens: int
    concurrency: int
    all_turns: bool
    seeds: list[int]
    engine: dict[str, Any] = Field(default_factory=dict, description="Engine arguments, or the server's URL.")


class Histogram(Model):
    """Counts by integer value from 0 on."""

    name: str
    counts: list[int]


class Eagle(Model):
    """What we add to vLLM's own keys."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["acceptance"] = "acceptance"
    partial: str | None = Field(None, description="Why the run ended before all was asked; null for a whole run.")
    source: Literal["records", "counters"] = Field(
        "records", description="counters: only the server's totals were to be had, so no groups and no intervals."
    )
    workload: Workload
    environment: Environment
    acceptance: Acceptance
    by_category: list[Group] = Field(default_factory=list)
    by_prompt_length: list[Group] = Field(default_factory=list)
    by_output_position: list[Group] = Field(default_factory=list)
    histograms: list[Histogram] = Field(default_factory=list)
    step_ms: StepTimes | None = None
    notes: list[str] = Field(default_factory=list)
    requests: list[Record] = Field(default_factory=list)


class AcceptanceResult(BaseModel):
    """The result of `bench acceptance`: vLLM's names, and ours under `eagle`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    date: str
    model_id: str
    num_prompts: int
    request_rate: str = "inf"
    max_concurrency: int
    duration: float
    completed: int
    failed: int
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    output_throughput: float
    total_token_throughput: float
    mean_ttft_ms: float
    median_ttft_ms: float
    std_ttft_ms: float
    p99_ttft_ms: float
    mean_tpot_ms: float
    median_tpot_ms: float
    std_tpot_ms: float
    p99_tpot_ms: float
    mean_itl_ms: float
    median_itl_ms: float
    std_itl_ms: float
    p99_itl_ms: float
    input_lens: list[int]
    output_lens: list[int]
    ttfts: list[float]
    itls: list[list[float]]
    generated_texts: list[str]
    errors: list[str]
    spec_decode_acceptance_rate: float | None = Field(None, description="Percent, as vLLM writes it.")
    spec_decode_acceptance_length: float | None = None
    spec_decode_num_drafts: int | None = None
    spec_decode_draft_tokens: int | None = None
    spec_decode_accepted_tokens: int | None = None
    spec_decode_per_position_acceptance_rates: list[float] | None = None
    eagle: Eagle


M = TypeVar("M", bound=BaseModel)


def read_result(file: Path, model: type[M]) -> M:
    """A result file.

    Raises:
        HeadError: it cannot be read, is of another version, or its figures are impossible.
    """
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise HeadError(f"{file} cannot be read: {error}", "A result of `vllm-eagle bench` was expected") from None
    version = (value.get("eagle") or value).get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise HeadError(
            f"{file} has schema version {version}",
            f"Version {SCHEMA_VERSION} was expected",
            "Measure again with this version of vllm-eagle-plugin",
        )
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise HeadError(
            f"{file} is not a result that this version wrote: {where}: {first['msg']}",
            "",
            "Measure again, or pass the file that `--json` printed",
        ) from None
