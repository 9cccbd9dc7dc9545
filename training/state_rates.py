"""Hidden states from vLLM against those of a Hugging Face forward pass: do they agree, and which is faster?

    python -m vllm_eagle_plugin.training.state_rates --target TARGET --data DATA

vLLM's speculative method `extract_hidden_states` drafts nothing: its proposer is handed the residual stream
behind the layers asked for (counted as EAGLE-3 heads count them) and keeps it for a KV connector to write. It
is read here where the proposer is handed it, because vLLM 0.32's own connector needs CUDA streams.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from ..command import run_function
from ..targets.target import read_target
from .corpus import read_corpus
from .teacher import Teacher, identify

#: Conversations that are run, and the tokens they are cut to.
_COUNT, _LENGTH = 32, 256


@contextlib.contextmanager
def open_engine(target: str, layers: list[int], dtype: str, **options: Any) -> Iterator[Any]:
    """A vLLM engine in this process that hands over the residual stream behind `layers`."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the proposer is read from this process
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; on processors most of the memory otherwise
    from vllm import LLM

    settings = {"max_model_len": 2 * _LENGTH, "enforce_eager": True, "skip_tokenizer_init": True, **options}
    speculative = {
        "method": "extract_hidden_states",
        "num_speculative_tokens": 1,
        "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": layers}},
    }
    llm = LLM(target, dtype=dtype, speculative_config=speculative, **settings)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def engine_states(llm: Any, prompts: list[list[int]]) -> list[Tensor]:
    """What the proposer is handed in each step of reading `prompts`, [tokens, layers * H] of each."""
    from vllm import SamplingParams, TokensPrompt

    drafter = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.drafter
    seen: list[Tensor] = []
    stock = drafter.propose

    def propose(*args: Any, **kwargs: Any) -> Any:
        states = kwargs["target_hidden_states"] if "target_hidden_states" in kwargs else args[2]
        seen.append(torch.cat(states, -1).clone())
        return stock(*args, **kwargs)

    drafter.propose = propose
    try:
        once = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False)
        llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], once, use_tqdm=False)
    finally:
        drafter.propose = stock
    return seen


def main(
    target: Annotated[str, typer.Option(help="The model: a folder or a hub id.")],
    data: Annotated[Path, typer.Option(help="Folder of shards from `train data`.")],
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
) -> None:
    """Tokens per second (on processors: of processor time per thread) of both ways, as one JSON object."""
    from .speed import now

    found = read_target(target)
    layers = [2, found.num_layers // 2, found.num_layers - 3]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    conversations = read_corpus([data], identify(found), 1).train[:_COUNT]
    prompts = [c.ids(_LENGTH).tolist() for c in conversations]
    tokens = sum(map(len, prompts))
    teacher = Teacher(found, layers, dtype, device)
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True).to(device)
    rates, states = {}, {}
    for _ in range(2):  # the first time warms up
        started = now(device)
        states["transformers"] = torch.cat([teacher(rows).hidden for rows in padded.split(8)])
        rates["transformers"] = tokens / (now(device) - started)
    with open_engine(target, layers, str(dtype).removeprefix("torch.")) as llm:
        for _ in range(2):
            llm.reset_prefix_cache()
            started, wall = now(device), time.monotonic()
            engine_states(llm, prompts)
            rates["vllm"] = tokens / (now(device) - started)
            wall = time.monotonic() - wall
        llm.reset_prefix_cache()
        alone = torch.cat(engine_states(llm, prompts[:1])).cpu()
    ours = states["transformers"][0, : len(prompts[0])].cpu().float()
    difference = float((alone.float() - ours).norm() / ours.norm())
    print(json.dumps({"tokens": tokens, "tokens_per_second": rates, "relative_difference": difference, "wall": wall}))


if __name__ == "__main__":
    run_function(main)
