"""Half an hour of mixed load on a server that drafts trees: no error, no leak, and plain decoding's answers.

    python -m vllm_eagle_plugin.benchmarks.soak --target TARGET --head HEAD --minutes 30 --json soak.json

A `vllm serve` without speculation answers everything once. Then one with trees is asked the same for as long as
was wanted, by clients of whom some hang up: prompts and answers of random lengths, greedy and sampled, with
penalties, truncation, seeds, log-probabilities, and one client that wants JSON by a schema. In fp32, so that
greedy answers must be the same. Before that the server has met a prompt of every length that one step can take, since
it keeps something for each number of rows. vLLM's own memory grows under such a load; with `--control` the server without
speculation is asked for as long in the same way, and only what grows beyond it is a leak. Exit code 1 on an error, a
difference that rounding does not explain, or a leak.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..command import run_function
from ..errors import HeadError, UsageError
from ..servers import serve
from ..tree import SECTION, WORKER
from ..tree.config import parse_drafting
from .clients import Clients
from .environment import environment, load
from .live import figures
from .load import build
from .memory import Growth, leaks
from .methods import check_head
from .prompts import BUILTIN, read_prompts
from .remote import speculative_counters
from .storm import LOGPROB_TOLERANCE, TIE, Storm, answer_plainly, every_size

#: Of the run, at its start, memory may grow: caches fill and allocators find their size.
WARM_UP = 0.3
#: Most rows of a step: long prompts are read in chunks.
ROWS = 512
SERVE = ("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16", "--max-num-batched-tokens", str(ROWS))
#: A busy machine takes its time to start a server; what this one waits for is half an hour long anyway.
START_SECONDS = 1200
#: What glibc keeps of freed memory depends on which sizes were alive together, and steps up for hours. With fixed
#: thresholds what is freed goes back to the system, so that resident memory is memory in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144", "MALLOC_ARENA_MAX": "1"}
#: Room in the KV cache for this many of the longest requests: small enough to be filled (its pages count as memory
#: only then) within minutes, and to be fought for.
BLOCK, REQUESTS_THAT_FIT = 128, 5


def leftovers(clients: Clients, log: Path) -> tuple[list[str], dict[str, Any]]:
    """What is wrong after the last client has gone, in words, and the speculative counters."""
    try:
        clients.wait_until_idle()
        found = clients.server.metrics()
    except (HeadError, OSError) as error:
        return [f"after the load: {error}"], {}
    wrong = []
    if used := found.get("vllm:kv_cache_usage_perc", 0.0):
        wrong.append(f"after the load: {used:.1%} of the KV cache is still held")
    wrong += [f"log: {line.strip()}" for line in log.read_text(errors="replace").splitlines() if _tells_error(line)]
    counters = speculative_counters(found)
    if counters is None or counters.draft_tokens == 0:
        return [*wrong, "nothing was drafted"], {}
    return wrong, {**figures(counters), "num_preemptions": found.get("vllm:num_preemptions_total", 0.0)}


def _tells_error(line: str) -> bool:
    return "ERROR" in line or "Traceback" in line


def serving_arguments(most_tokens: int) -> list[str]:
    """What both servers get, for requests of `most_tokens` at most, prompt and answer."""
    blocks = 1 + REQUESTS_THAT_FIT * -(-most_tokens // BLOCK)
    cache = ("--block-size", str(BLOCK), "--num-gpu-blocks-override", str(blocks))
    return [*SERVE, "--max-model-len", str(most_tokens), *cache]


def tree_config(head: str, nodes: int, tree: str) -> dict[str, Any]:
    """A speculative config whose `SECTION` asks for the tree that a command line names.

    Raises:
        HeadError: no such head, or no such tree.
    """
    check_head(head)
    try:
        asked = {SECTION: {"tree": json.loads(tree) if tree.startswith("{") else tree}}
    except ValueError as error:
        raise UsageError(f"--tree is not JSON: {error}", 'Expected: auto, or such as {"kind": "dynamic"}') from None
    parse_drafting(asked, nodes)
    return {"model": head, "num_speculative_tokens": nodes, **asked}


def tree_arguments(config: dict[str, Any]) -> list[str]:
    """The arguments of `vllm serve` that ask for the same."""
    return [
        *("--speculative-config", json.dumps({k: v for k, v in config.items() if k != SECTION})),
        *("--additional-config", json.dumps({SECTION: config[SECTION]})),
        *("--worker-cls", WORKER, "--no-async-scheduling"),
    ]


def main(
    target: Annotated[str, typer.Option(help="The target: a folder or a hub id.")],
    head: Annotated[str, typer.Option(help="A converted head for it.")],
    minutes: Annotated[float, typer.Option(min=0.1, help="How long the load lasts.")] = 30.0,
    tree: Annotated[str, typer.Option(help='"auto", or the tree as a JSON object.')] = "auto",
    nodes: Annotated[int, typer.Option(help="num_speculative_tokens: the most nodes of a tree.")] = 16,
    prompts: Annotated[str, typer.Option(help="Questions to draw prompts from.")] = BUILTIN,
    count: Annotated[int, typer.Option(help="Different things to ask.")] = 120,
    longest: Annotated[int, typer.Option(help="Tokens of the longest answer.")] = 96,
    longest_prompt: Annotated[int, typer.Option(help="Tokens of the longest prompt.")] = 600,
    clients: Annotated[int, typer.Option(min=2, help="At the same time; one of them wants structured output.")] = 12,
    hanging_up: Annotated[float, typer.Option(help="Share of requests whose client hangs up.")] = 0.1,
    leak: Annotated[float, typer.Option(help="MiB per minute after warm-up that count as a leak.")] = 1.0,
    control: Annotated[bool, typer.Option("--control", help="Take off what plain decoding's memory grows.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything random here.")] = 0,
    output: Annotated[Path | None, typer.Option("--json", help="File to write.")] = None,
    logs: Annotated[Path, typer.Option(help="Folder for the servers' logs.")] = Path("artifacts/soak"),
) -> None:
    """Run it."""
    from transformers import AutoTokenizer

    drafting = tree_arguments(tree_config(head, nodes, tree))
    console, load_before = Console(highlight=False, markup=False, width=160), load()
    logs.mkdir(parents=True, exist_ok=True)
    questions = read_prompts(prompts)
    serving = serving_arguments(longest_prompt + longest + 8)
    as_sampled = ("--logprobs-mode", "processed_logprobs")
    with serve(
        target, logs / "plain.log", *serving, *as_sampled, start_seconds=START_SECONDS, settings=ALLOCATOR
    ) as server:
        asking = Clients(server, target)
        entries = build(questions, AutoTokenizer.from_pretrained(target), count, longest_prompt, seed)
        plain = answer_plainly(asking, entries, longest, clients)
        console.print(f"plain decoding has answered {len(plain)} of {len(entries)} requests; the others are not seeded")
        load_of = Storm(entries, plain, longest, hanging_up, clients, seed)
        if control:
            every_size(asking, ROWS)
        plain_curve = load_of.run(asking, minutes * 60, console)[1] if control else []
    arguments, log = [*serving, *drafting], logs / "trees.log"
    with serve(target, log, *arguments, start_seconds=START_SECONDS, settings=ALLOCATOR) as server:
        asking = Clients(server, target)
        every_size(asking, ROWS)
        seen, curve = load_of.run(asking, minutes * 60, console)
        wrong, counters = leftovers(asking, log)
    growth, plain_growth = (Growth.of(c, WARM_UP * c[-1][0]) if c else None for c in (curve, plain_curve))
    bugs, errors = seen.bugs(), seen.errors + wrong
    verdict = {
        "errors": len(errors),
        "differences": len(bugs),
        "logprobs_off": seen.logprob_error > LOGPROB_TOLERANCE,
        "leaks": leaks(growth, plain_growth, leak),
    }
    passed = not any(verdict.values())
    result = {
        "kind": "soak",
        "schema_version": 1,
        "passed": passed,
        "verdict": verdict,
        "minutes": curve[-1][0] / 60,
        "requests": dict(seen.requests),
        "hung_up": seen.hung_up,
        "compared_with_plain": dict(seen.compared),
        "greedy_ties": [asdict(d) for d in seen.of(greedy=True) if d.tie(TIE)],
        "seeded_differences": [asdict(d) for d in seen.of(greedy=False)],
        "bugs": [asdict(d) for d in bugs],
        "errors": errors[:50],
        "largest_logprob_error": seen.logprob_error,
        "speculative": counters,
        "memory": {
            "growth": asdict(growth) if growth else None,
            "plain_growth": asdict(plain_growth) if plain_growth else None,
            "leak_above_mib_per_minute": leak,
            "curve": curve,
            "plain_curve": plain_curve,
        },
        "server_arguments": arguments,
        "environment": environment(load_before).model_dump(),
    }
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n")
    hidden = ("kind", "schema_version", "environment", "server_arguments", "memory")
    console.print({name: value for name, value in result.items() if name not in hidden})
    for name, grown in (("trees", growth), ("plain", plain_growth)):
        if grown is not None:
            console.print(f"memory, {name}: {grown}")
    if verdict["leaks"] is None:
        console.print("memory is not judged: the run is too short for that")
    console.print("passed" if passed else "FAILED")
    raise typer.Exit(0 if passed else 1)


if __name__ == "__main__":
    run_function(main)
