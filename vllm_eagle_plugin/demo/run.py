"""Serve the demo target plain and with a draft head, and show the difference."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..benchmarks.environment import environment, load
from ..benchmarks.report.answer_picture import draw, split_steps
from ..conversion import convert
from ..errors import HeadError
from ..record import RECORD, read_record
from ..servers import Server, serve
from .target import build_target

PROMPTS = (
    "Explain in a few sentences why the sky is blue.",
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "What is the difference between a list and a tuple in Python?",
)
MAX_TOKENS = 64
#: fp32, so that plain and speculative decoding agree to the token: in bf16 the rounding of one row and of
#: several rows at once differs, and near-ties can fall either way.
SERVE_ARGUMENTS = ("--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "4", "--enforce-eager")


@dataclass
class Answer:
    """One answer as it came: token ids in the order and grouping of the stream, and their text."""

    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    seconds: float = 0.0


def run_demo(work: Path, head: Path | None, k: int) -> None:
    """Build, convert, serve twice, compare; writes `tokens.svg` and `result.json` into `work`."""
    console = Console(highlight=False)
    work.mkdir(parents=True, exist_ok=True)
    head = head or shipped_head()
    with console.status("building the target (once)"):
        target = build_target(work / "target")
    console.print(f"target  {target}  (SmolLM2-135M-Instruct)")
    conversion = convert(head, str(target), work / "head", force=True)
    console.print(f"head    {head}  ({conversion.detection.reader.name}, {conversion.layout.why})")
    console.print(f"\n  {conversion.serve_command}\n", soft_wrap=True)

    with console.status("vllm serve, plain"), serve(target, work / "plain.log", *SERVE_ARGUMENTS) as server:
        plain = ask_all(server)
    record = work / "drafts.jsonl"
    record.unlink(missing_ok=True)
    os.environ[RECORD] = str(record.resolve())
    speculative = json.dumps({"model": str(work / "head"), "num_speculative_tokens": k})
    arguments = (*SERVE_ARGUMENTS, "--speculative-config", speculative)
    with console.status("vllm serve, with the head"), serve(target, work / "speculative.log", *arguments) as server:
        before = server.metrics()
        drafted = ask_all(server)
        after = server.metrics()
    report(console, work, plain, drafted, before, after, k)


def shipped_head() -> Path:
    """The trained head in this repository's `examples/`."""
    head = Path(__file__).resolve().parents[2] / "examples" / "smollm2-135m" / "eagle3"
    if not head.is_dir():
        raise HeadError(
            "the demo's trained head is not here; it is part of the repository, not of the package",
            "",
            "Run the demo from a clone of the repository, or pass --head FOLDER",
        )
    return head


def ask_all(server: Server) -> list[Answer]:
    """The answers to all prompts, greedy, one after the other; the first is asked twice to warm up."""
    ask(server, PROMPTS[0])
    return [ask(server, prompt) for prompt in PROMPTS]


def ask(server: Server, prompt: str) -> Answer:
    """Stream one greedy answer."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        server.url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    answer, started = Answer(0), time.monotonic()
    with urllib.request.urlopen(request, timeout=600) as stream:
        for raw in stream:
            line = raw.decode().strip()
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if chunk.get("prompt_token_ids"):
                answer.prompt_tokens = len(chunk["prompt_token_ids"])
            for choice in chunk["choices"]:
                answer.tokens += choice.get("token_ids") or []
                answer.text += choice["delta"].get("content") or ""
    answer.seconds = time.monotonic() - started
    return answer


def report(
    console: Console,
    work: Path,
    plain: list[Answer],
    drafted: list[Answer],
    before: dict[str, float],
    after: dict[str, float],
    k: int,
) -> None:
    """Print and save what the two runs show."""
    grown = {name: after[name] - before.get(name, 0.0) for name in after if "spec_decode" in name}
    drafts = grown["vllm:spec_decode_num_drafts_total"]
    length = 1 + grown["vllm:spec_decode_num_accepted_tokens_total"] / drafts
    per_position = [grown[f"vllm:spec_decode_num_accepted_tokens_per_pos_total[{i}]"] / drafts for i in range(k)]
    same = [a.tokens == b.tokens for a, b in zip(plain, drafted, strict=True)]
    speeds = [sum(len(a.tokens) for a in run) / sum(a.seconds for a in run) for run in (plain, drafted)]

    for prompt, one, other in zip(PROMPTS, plain, drafted, strict=True):
        side_by_side = Table("plain", "with the head", title=prompt, title_justify="left", expand=True)
        side_by_side.add_row(_excerpt(one.text), _excerpt(other.text))
        console.print(side_by_side)
    table = Table("", "plain", "with the head")
    table.add_row("tokens per second", *(f"{speed:.1f}" for speed in speeds))
    table.add_row("same tokens (T = 0)", "", f"{sum(same)} of {len(same)} answers")
    table.add_row("acceptance length", "1.00", f"{length:.2f}")
    table.add_row("accepted by position", "", "  ".join(f"{rate:.0%}" for rate in per_position))
    console.print(table)
    console.print(f"speed-up {speeds[1] / speeds[0]:.2f}x at batch 1 on this machine\n")

    _, chains, *_ = read_record(work / "drafts.jsonl")  # the first request warmed up
    steps = split_steps(drafted[0].tokens, drafted[0].prompt_tokens, chains)
    draw(console, work / "target", PROMPTS[0], steps, work / "tokens.svg")
    result = {
        "spec_decode_acceptance_length": length,
        "spec_decode_per_position_acceptance_rates": per_position,
        "num_speculative_tokens": k,
        "identical_answers": sum(same),
        "answers": len(same),
        "tokens_per_second": {"plain": speeds[0], "speculative": speeds[1]},
        "environment": environment(load()).model_dump(),
    }
    (work / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"picture {work / 'tokens.svg'}, figures {work / 'result.json'}")
    if not all(same):
        raise HeadError(
            f"{len(same) - sum(same)} of {len(same)} answers differ between plain and speculative decoding",
            "In fp32 they must be the same to the token",
            f"Please report this with the logs in {work}",
        )


def _excerpt(text: str, length: int = 220) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[:length] + " ..."
