"""A verification in a process of its own: `python -m ... JOB RESULT`, both JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...errors import HeadError
from ...targets.observer import Observer, read_turns
from ...targets.running import TargetNotRun
from ...targets.target import Target, read_target
from ..understand import open_source, understand
from .check import Verification, judged
from .compare import TOLERANCE, compare
from .engine import draft, runs_alone
from .job import POSITIONS, Job, prompts_for

#: Targets with fewer bytes of weights are verified in fp32, where rounding hides nothing.
_SMALL = 8 << 30


def run(job: Job) -> Verification:
    """Draft in vLLM, then let the reference of the source draft from the same positions."""
    target = read_target(job.target)
    source = open_source(job.head, None if job.config is None else Path(job.config))
    _, reading = understand(source, target, job.told())
    config = reading.config
    steps = min(4, config.max_draft_tokens or 4)
    precision = _precision(target)
    observer = Observer(target, precision)
    prompts = prompts_for(observer, read_turns(None if job.prompts is None else Path(job.prompts)))
    if not prompts:
        raise HeadError(
            "no prompt is short enough to verify with", "Up to 256 tokens were expected", "Pass shorter ones"
        )
    ids = torch.arange(config.draft_vocab)
    columns = ids + reading.tensors["d2t"].load() if config.reduced_vocab else None
    speculative = {"method": job.method, **job.speculative, "num_speculative_tokens": steps}
    dtype = str(precision).removeprefix("torch.")
    drafted = draft(
        target.folder, Path(job.converted), speculative, prompts, POSITIONS, dtype, observer.context, columns
    )
    figures = compare(reading.reference(target), observer, drafted, steps, TOLERANCE[precision])
    from ...compat.versions import vllm_distribution

    name, version = vllm_distribution() or ("vllm", "")
    plugin = "" if job.needs_plugin else ", without this plugin"
    return judged(figures, f"{name} {version}{plugin}", precision)


def alone(job: Job) -> str:
    """Why vLLM cannot run the target by itself; empty if it can."""
    target = read_target(job.target)
    dtype = str(_precision(target)).removeprefix("torch.")
    return runs_alone(target.folder, dtype, target.config.max_position_embeddings or 2048)


def _precision(target: Target) -> torch.dtype:
    stored = target.config.dtype or torch.float32
    return torch.float32 if target.checkpoint.size < _SMALL or stored not in TOLERANCE else stored


def main() -> None:
    """Answer the job; a `HeadError` is an answer too."""
    asked, answered = map(Path, sys.argv[1:])
    result: dict[str, Any]
    try:
        job = Job(**json.loads(asked.read_text(encoding="utf-8")))
        result = {"alone": alone(job)} if job.alone else asdict(run(job))
    except HeadError as error:
        result = {"error": [error.found, error.expected, error.action], "not_run": isinstance(error, TargetNotRun)}
    answered.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
