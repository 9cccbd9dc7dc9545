"""What vLLM drafts with a head: an engine in this process, watched. Imports vLLM when it runs."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...compat.running import drafter_of, proposed_from, runner_of
from .compare import Drafted

#: Tokens asked for at once.
_ROUND = 48
_ROUNDS = 12


class Watch:
    """Keeps what a drafter of vLLM's proposes, and the logits of every step, for the columns `ids` (all if None)."""

    def __init__(self, llm: Any, ids: Tensor | None) -> None:
        self._runner, self._ids = runner_of(llm), ids
        self._logits: list[Tensor] | None = None
        #: (request, position): drafts and logits [k, Vd].
        self.seen: dict[tuple[str, int], tuple[list[int], Tensor]] = {}
        drafter = drafter_of(llm)
        self._propose, self._compute = drafter.propose, drafter.model.compute_logits
        drafter.propose = self.propose  # on these objects only, so that any class of proposer is watched alike
        drafter.model.compute_logits = self.compute_logits
        if hasattr(drafter.model, "get_top_tokens"):
            self._top = drafter.model.get_top_tokens
            drafter.model.get_top_tokens = self.get_top_tokens

    def propose(self, *args: Any, **kwargs: Any) -> Any:
        requests, at = proposed_from(self._runner, args, kwargs)
        positions = at.tolist()  # read now what drafting overwrites
        self._logits = []
        drafts = self._propose(*args, **kwargs)
        steps = [logits.float().cpu() for logits in self._logits]
        self._logits = None
        if len(steps) == 1 and len(drafts) and len(steps[0]) == drafts.numel():  # all steps in one pass
            stacked = steps[0].view(len(drafts), -1, steps[0].shape[-1])
        else:
            stacked = torch.stack([s[: len(drafts)] for s in steps], 1)
        for row, (request, position) in enumerate(zip(requests, positions, strict=True)):
            kept = stacked[row] if self._ids is None else stacked[row][:, self._ids]
            self.seen[request, position] = drafts[row].tolist(), kept
        return drafts

    def compute_logits(self, *args: Any, **kwargs: Any) -> Tensor:
        logits = self._compute(*args, **kwargs)
        if self._logits is not None:
            self._logits.append(logits)
        return logits

    def get_top_tokens(self, features: Tensor) -> Tensor:
        if self._logits is not None:
            self._logits.append(self._compute(features))
        return self._top(features)


def runs_alone(target: Path, dtype: str, context: int) -> str:
    """Why vLLM cannot run the target here, with no head at all; empty if it can."""
    try:
        with _engine(target, dtype, min(context, 64), 1) as llm:
            from vllm import SamplingParams, TokensPrompt

            llm.generate([TokensPrompt(prompt_token_ids=[1, 2])], SamplingParams(max_tokens=2, detokenize=False), use_tqdm=False)  # fmt: skip
    except Exception as error:  # an engine's start can fail in any way
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


@contextmanager
def _engine(target: Path, dtype: str, longest: int, requests: int, **settings: Any) -> Iterator[Any]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(
        str(target), dtype=dtype, max_model_len=longest, max_num_seqs=requests, enforce_eager=True, seed=0,
        max_num_batched_tokens=max(longest, 2048), skip_tokenizer_init=True, enable_prefix_caching=False,
        disable_log_stats=True, **settings,
    )  # fmt: skip
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def draft(
    target: Path, head: Path, speculative: dict[str, Any], prompts: Sequence[list[int]], positions: int,
    dtype: str, context: int, ids: Tensor | None,
) -> list[Drafted]:  # fmt: skip
    """What vLLM drafts with `head` behind `prompts`, from at least `positions` positions where texts can be so long."""
    longest = min(context, max(map(len, prompts)) + _ROUND * _ROUNDS)
    speculation = {"model": str(head), **speculative}
    with _engine(target, dtype, longest, len(prompts), speculative_config=speculation) as llm:
        return _watched(llm, prompts, positions, longest, ids)


def _watched(llm: Any, prompts: Sequence[list[int]], positions: int, longest: int, ids: Tensor | None) -> list[Drafted]:
    from vllm import SamplingParams, TokensPrompt

    watch = Watch(llm, ids)
    params = SamplingParams(temperature=0.0, max_tokens=_ROUND, ignore_eos=True, detokenize=False)
    texts, drafted, count = [list(p) for p in prompts], [], 0
    for _ in range(_ROUNDS):
        texts = [t for t in texts if len(t) + _ROUND < longest]
        if count >= positions or not texts:
            break
        watch.seen.clear()
        outputs = llm.generate([TokensPrompt(prompt_token_ids=t) for t in texts], params, use_tqdm=False)
        known = {o.request_id: len(t) for o, t in zip(outputs, texts, strict=True)}
        texts = [t + list(o.outputs[0].token_ids) for o, t in zip(outputs, texts, strict=True)]
        for output, text in zip(outputs, texts, strict=True):
            # In the middle of a prompt the runner drafts behind a token that is not the next one.
            at = {
                position: found
                for (request, position), found in watch.seen.items()
                if request.split("-")[0] == output.request_id and position >= known[output.request_id] - 1
            }
            drafted.append(Drafted(text, at))
            count += len(at)
    return drafted
