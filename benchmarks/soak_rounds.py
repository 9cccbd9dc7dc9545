"""Whether an engine keeps something of each request: the same requests again and again, and its memory after each round.

    python -m vllm_eagle_plugin.benchmarks.soak_rounds --target TARGET --head HEAD --tree TREE --json FILE

Under random load resident memory also rises with every size not met before, since vLLM, its kernels and the allocator
keep something for each. The second round of the same requests meets none, so what rises from there on is kept of
each request or step. The requests are the soak's, one, four and twelve at a time, greedy and sampled.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console

from ..command import run_function
from ..errors import HeadError
from ..servers import serving_environment
from .engine import Engine, open_engine
from .environment import environment, load
from .load import build
from .memory import MIB
from .prompts import BUILTIN, Question, read_prompts
from .session import Sampling
from .soak import ALLOCATOR, BLOCK, REQUESTS_THAT_FIT, ROWS, tree_config

CONCURRENCY = (1, 4, 12)


@dataclass(frozen=True)
class Held:
    """What this process holds: resident memory, and the tensors that Python can reach."""

    resident_mib: float
    tensors: int
    tensor_mib: float

    @classmethod
    def now(cls) -> Held:
        import torch

        gc.collect()
        # By their types alone: lazy objects of other libraries load things when they are asked what they are.
        tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_meta}
        return cls(psutil.Process().memory_info().rss / MIB, len(tensors), sum(storages.values()) / MIB)


def one_round(engine: Engine, questions: Sequence[Question], tokens: int) -> int:
    """Ask everything, a third of it at each number of requests at a time; returns how many answers there were.

    Raises:
        HeadError: the engine failed, or refused a prompt.
    """
    answers: list[Any] = []
    refused: list[str] = []
    for index, concurrency in enumerate(CONCURRENCY):
        part = questions[index :: len(CONCURRENCY)]
        for temperature, asked in ((0.0, part[::2]), (1.0, part[1::2])):
            refused += engine.run(asked, Sampling(temperature, tokens), concurrency, answers.append)
    engine.forget()
    engine.take_steps()  # whatever the engine's clock keeps is the benchmark's
    if refused:
        raise HeadError(f"vLLM refused {len(refused)} of {len(questions)} prompts: {refused[0]}")
    return len(answers)


def main(
    target: Annotated[str, typer.Option(help="The target: a folder or a hub id.")],
    head: Annotated[str, typer.Option(help="A converted head for it.")],
    tree: Annotated[str, typer.Option(help='"auto", or the tree as a JSON object.')] = "auto",
    nodes: Annotated[int, typer.Option(help="num_speculative_tokens: the most nodes of a tree.")] = 16,
    rounds: Annotated[int, typer.Option(min=2, help="How often the same is asked.")] = 12,
    count: Annotated[int, typer.Option(min=6, help="Requests of a round.")] = 60,
    prompts: Annotated[str, typer.Option(help="Questions to draw prompts from.")] = BUILTIN,
    longest: Annotated[int, typer.Option(help="Tokens of the longest answer.")] = 48,
    longest_prompt: Annotated[int, typer.Option(help="Tokens of the longest prompt.")] = 600,
    output: Annotated[Path | None, typer.Option("--json", help="File to write.")] = None,
) -> None:
    """Print what is held after each round."""
    if not ALLOCATOR.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, sys.orig_argv, serving_environment() | ALLOCATOR)
    from transformers import AutoTokenizer

    speculative, load_before = tree_config(head, nodes, tree), load()
    drawn = build(read_prompts(prompts), AutoTokenizer.from_pretrained(target), count, longest_prompt, seed=0)
    questions = [Question(e.index, str(e.index), token_ids=tuple(e.prompt)) for e in drawn]
    most = longest_prompt + longest + 8
    options = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_num_seqs": 16,
        "max_num_batched_tokens": ROWS,
        "max_model_len": most,
        "block_size": BLOCK,
        "num_gpu_blocks_override": 1 + REQUESTS_THAT_FIT * -(-most // BLOCK),
    }
    held: list[Held] = []
    with open_engine(target, speculative, options) as engine:
        for number in range(rounds):
            answers = one_round(engine, questions, longest)
            held.append(now := Held.now())
            Console(highlight=False).print(
                f"round {number + 1}, {answers} answers: {now.resident_mib:.1f} MiB resident, "
                f"{now.tensors} tensors of {now.tensor_mib:.1f} MiB"
            )
        engine_described, counters = engine.describe(), engine.counters()
    if output is not None:
        result = {
            "kind": "soak_rounds",
            "schema_version": 1,
            "speculative_config": speculative,
            "requests_a_round": len(questions),
            "rounds": [asdict(each) for each in held],
            "counters": asdict(counters) if counters else None,
            "engine": engine_described,
            "environment": environment(load_before).model_dump(),
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_function(main)
