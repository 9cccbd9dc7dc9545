"""Whether an engine keeps something of each request: the same requests again and again, and its memory after each.

    python -m experiments.rounds --target TARGET --head HEAD --tree 4x5/16 --json FILE

Under random load resident memory also rises with every size not met before, since vLLM, its kernels and the allocator
keep something for each. The second round of the same requests meets none, so what rises from there on is kept of
each request or step. The requests are the soak's, one, four and twelve at a time, greedy and sampled.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from vllm_eagle_plugin.benchmarks.engine import Engine, open_engine
from vllm_eagle_plugin.benchmarks.environment import load
from vllm_eagle_plugin.benchmarks.prompts import BUILTIN, Question, read_prompts
from vllm_eagle_plugin.benchmarks.session import Sampling

from vllm_eagle_plugin.command import run_function
from vllm_eagle_plugin.errors import HeadError
from vllm_eagle_plugin.servers import serving_environment

from . import options
from .load import build
from .soak import ALLOCATOR, engine_settings
from .storm import MIB

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
        tensors = [seen for seen in gc.get_objects() if issubclass(type(seen), torch.Tensor)]
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
    target: options.Target,
    head: options.Head,
    tree: options.Tree = "auto/16",
    rounds: Annotated[int, typer.Option(min=2, help="How often the same is asked.")] = 12,
    count: Annotated[int, typer.Option(min=6, help="Requests of a round.")] = 60,
    prompts: options.Prompts = BUILTIN,
    longest: options.Longest = 48,
    longest_prompt: options.LongestPrompt = 600,
    output: options.Output = None,
) -> None:
    """Print what is held after each round."""
    if not ALLOCATOR.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, sys.orig_argv, serving_environment() | ALLOCATOR)
    from transformers import AutoTokenizer

    drafting, load_before = options.tree_of(head, tree).speculative, load()
    drawn = build(read_prompts(prompts), AutoTokenizer.from_pretrained(target), count, longest_prompt, seed=0)
    questions = [Question(e.index, str(e.index), token_ids=tuple(e.prompt)) for e in drawn]
    held: list[Held] = []
    with open_engine(target, drafting, engine_settings(longest_prompt + longest + 8)) as engine:
        for number in range(rounds):
            answers = one_round(engine, questions, longest)
            held.append(now := Held.now())
            Console(highlight=False).print(
                f"round {number + 1}, {answers} answers: {now.resident_mib:.1f} MiB resident, "
                f"{now.tensors} tensors of {now.tensor_mib:.1f} MiB"
            )
    requests = len(questions)
    options.write(output, "rounds", load_before, requests_a_round=requests, rounds=[asdict(each) for each in held])


if __name__ == "__main__":
    run_function(main)
