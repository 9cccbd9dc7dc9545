"""Half an hour of mixed load on a server that drafts trees: no error, no leak, and plain decoding's answers.

    python -m experiments.soak --target TARGET --head HEAD --tree auto/16 --minutes 30 --json soak.json

A `vllm serve` without speculation answers everything once. Then one with trees is asked the same for as long as was
wanted: prompts and answers of random lengths, greedy and sampled, with penalties, truncation, seeds and
log-probabilities; one client wants JSON by a schema, and some hang up. In fp32, so that greedy answers must be the
same. vLLM keeps something for each number of rows that it has run, so both servers are first asked a prompt of every
length that a step can take. With `--control` the server without speculation gets the same load for as long, and only
what grows beyond it is a leak. Exit code 1 on an error, a difference that rounding does not explain, or a leak.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from vllm_eagle_plugin.benchmarks.environment import load
from vllm_eagle_plugin.benchmarks.live import figures
from vllm_eagle_plugin.benchmarks.methods import engine_arguments
from vllm_eagle_plugin.benchmarks.prompts import BUILTIN, read_prompts
from vllm_eagle_plugin.benchmarks.remote import speculative_counters

from vllm_eagle_plugin.command import run_function
from vllm_eagle_plugin.errors import HeadError
from vllm_eagle_plugin.servers import flags, serve

from . import options
from .clients import Clients
from .load import build
from .storm import LOGPROB_TOLERANCE, TIE, Growth, Seen, Storm, answer_plainly, every_size, leaks

#: Of the run, at its start, memory may grow: caches fill and allocators find their size.
WARM_UP = 0.3
#: Most rows of a step: long prompts are read in chunks.
ROWS = 512
START_SECONDS = 1200
#: What glibc keeps of freed memory depends on which sizes were alive together, and steps up for hours. With fixed
#: thresholds what is freed goes back to the system, so that resident memory is memory in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144", "MALLOC_ARENA_MAX": "1"}
#: Room in the KV cache for this many of the longest requests: small enough to be filled (its pages count as memory
#: only then) within minutes, and to be fought for.
BLOCK, REQUESTS_THAT_FIT = 128, 5


def engine_settings(most_tokens: int) -> dict[str, Any]:
    """Engine arguments for requests of `most_tokens` at most, prompt and answer."""
    return {
        "dtype": "float32",
        "enforce_eager": True,
        "max_num_seqs": 16,
        "max_num_batched_tokens": ROWS,
        "max_model_len": most_tokens,
        "block_size": BLOCK,
        "num_gpu_blocks_override": 1 + REQUESTS_THAT_FIT * -(-most_tokens // BLOCK),
    }


def leftovers(clients: Clients, log: Path) -> tuple[list[str], dict[str, Any]]:
    """What is wrong after the last client has gone, in words, and the speculative counters."""
    try:
        clients.wait_until_idle()
        metrics = clients.server.metrics()
    except (HeadError, OSError) as error:
        return [f"after the load: {error}"], {}
    wrong = []
    if used := metrics.get("vllm:kv_cache_usage_perc", 0.0):
        wrong.append(f"after the load: {used:.1%} of the KV cache is still held")
    lines = log.read_text(errors="replace").splitlines()
    wrong += [f"log: {line.strip()}" for line in lines if "ERROR" in line or "Traceback" in line]
    counters = speculative_counters(metrics)
    if counters is None or counters.draft_tokens == 0:
        return [*wrong, "nothing was drafted"], {}
    return wrong, {**figures(counters), "num_preemptions": metrics.get("vllm:num_preemptions_total", 0.0)}


def judged(seen: Seen, errors: list[str], trees: Growth | None, plain: Growth | None, most: float) -> dict[str, Any]:
    """The verdict, and what it rests on."""
    bugs = seen.bugs()
    verdict = {
        "errors": len(errors),
        "differences": len(bugs),
        "logprobs_off": seen.logprob_error > LOGPROB_TOLERANCE,
        "leaks": leaks(trees, plain, most),
    }
    return {
        "passed": not any(verdict.values()),
        "verdict": verdict,
        "requests": dict(seen.requests),
        "hung_up": seen.hung_up,
        "compared_with_plain": dict(seen.compared),
        "greedy_ties": [asdict(d) for d in seen.of(greedy=True) if d.tie(TIE)],
        "seeded_differences": [asdict(d) for d in seen.of(greedy=False)],
        "bugs": [asdict(d) for d in bugs],
        "errors": errors[:50],
        "largest_logprob_error": seen.logprob_error,
    }


def main(
    target: options.Target,
    head: options.Head,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long the load lasts.")] = 30.0,
    tree: options.Tree = "auto/16",
    prompts: options.Prompts = BUILTIN,
    count: Annotated[int, typer.Option(help="Different things to ask.")] = 120,
    longest: options.Longest = 96,
    longest_prompt: options.LongestPrompt = 600,
    clients: Annotated[int, typer.Option(min=2, help="At a time; one wants structured output.")] = 12,
    hanging_up: Annotated[float, typer.Option(help="Share of requests whose client hangs up.")] = 0.1,
    leak: Annotated[float, typer.Option(help="MiB per minute after warm-up that count as a leak.")] = 1.0,
    control: Annotated[bool, typer.Option("--control", help="Take off what plain decoding's memory grows.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything random here.")] = 0,
    output: options.Output = None,
    logs: Annotated[Path, typer.Option(help="Folder for the servers' logs.")] = Path("artifacts/soak"),
) -> None:
    """Run it."""
    from transformers import AutoTokenizer

    drafting = engine_arguments(options.tree_of(head, tree).speculative)
    console, load_before = Console(highlight=False, markup=False, width=160), load()
    logs.mkdir(parents=True, exist_ok=True)
    serving, log = flags(engine_settings(longest_prompt + longest + 8)), logs / "trees.log"
    entries = build(read_prompts(prompts), AutoTokenizer.from_pretrained(target), count, longest_prompt, seed)
    patient: dict[str, Any] = {"start_seconds": START_SECONDS, "settings": ALLOCATOR}
    with serve(target, logs / "plain.log", *serving, "--logprobs-mode", "processed_logprobs", **patient) as server:
        asking = Clients(server, target)
        plain = answer_plainly(asking, entries, longest, clients)
        console.print(f"plain decoding has answered {len(plain)} of {len(entries)} requests; the others are not seeded")
        storm = Storm(entries, plain, longest, hanging_up, clients, seed)
        if control:
            every_size(asking, ROWS)
        plain_curve = storm.run(asking, minutes * 60)[1] if control else []
    with serve(target, log, *serving, *flags(drafting), **patient) as server:
        asking = Clients(server, target)
        every_size(asking, ROWS)
        seen, curve = storm.run(asking, minutes * 60)
        wrong, counters = leftovers(asking, log)
    growth, plain_growth = (Growth.of(c, WARM_UP * c[-1][0]) if c else None for c in (curve, plain_curve))
    result = judged(seen, seen.errors + wrong, growth, plain_growth, leak)
    memory: dict[str, Any] = {"trees": curve, "plain": plain_curve}
    for name, grown in (("trees", growth), ("plain", plain_growth)):
        memory[f"{name}_growth"] = asdict(grown) if grown else None
    options.write(output, "soak", load_before, **result, minutes=curve[-1][0] / 60, speculative=counters, memory=memory)
    console.print(result | {"trees": str(growth), "plain": str(plain_growth)})
    if result["verdict"]["leaks"] is None:
        console.print("memory is not judged: the run is too short for that")
    console.print("passed" if result["passed"] else "FAILED")
    raise typer.Exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    run_function(main)
