"""Several heads in stock vLLM, one engine after another in one process without our plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def run_stock(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run `jobs` (target, head, method, prompts) and return what each did: counters and drafts, or its error.

    Memory that vLLM leaves uninitialised is filled with NaN, so that weights which no tensor was loaded into
    show up every time, and not only when the pages were in use before.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.stock_heads", json.dumps(jobs, default=str)],
        capture_output=True, text=True, env={**os.environ, "VLLM_PLUGINS": ""}, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def run(job: dict[str, Any]) -> dict[str, Any]:
    from .engine import engine

    drafts: list[list[int]] = []
    with engine(job["target"], job["head"], job["k"], speculative={"method": job["method"]}) as running:
        drafter = running.runner.drafter
        propose = drafter.propose

        def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
            found = propose(*args, **kwargs)
            drafts.extend(found.tolist())
            return found

        drafter.propose = watched
        before = running.counters()
        outputs = running.generate(job["prompts"], max_tokens=job["tokens"])
        counted = running.counters() - before
        model = type(drafter.model).__name__
    rates = [accepted / counted.drafts for accepted in counted.per_position] if counted.drafts else []
    return {"model": model, "accepted": rates, "outputs": outputs, "drafts": drafts}


def main() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    results = []
    for job in json.loads(sys.argv[1]):
        try:
            results.append(run(job))
        except Exception as error:  # a head may fail in any way; what it says is what is asked
            results.append({"error": f"{type(error).__name__}: {error}"})
    ours = [name for name in sys.modules if name.startswith("vllm_eagle_plugin.")]
    assert not ours, f"the plugin was loaded: {ours}"
    print(json.dumps(results))


if __name__ == "__main__":
    main()
