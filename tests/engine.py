"""Running real vLLM engines in this process, one at a time."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Counters:
    """vLLM's speculative counters over some requests."""

    drafts: int = 0
    draft_tokens: int = 0
    accepted: int = 0
    per_position: tuple[int, ...] = ()

    @property
    def acceptance_length(self) -> float:
        return 1 + self.accepted / self.drafts

    def __sub__(self, other: Counters) -> Counters:
        before = other.per_position or (0,) * len(self.per_position)
        return Counters(
            self.drafts - other.drafts,
            self.draft_tokens - other.draft_tokens,
            self.accepted - other.accepted,
            tuple(a - b for a, b in zip(self.per_position, before, strict=True)),
        )


class Engine:
    """A vLLM engine with the figures tests ask for."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def generate(self, prompts: list[list[int]], params: Any = None, **sampling: Any) -> list[list[int]]:
        from vllm import SamplingParams, TokensPrompt

        if params is None:
            params = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "detokenize": False, **sampling})
        outputs = self.llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], params, use_tqdm=False)
        #: Ids of the last call's requests, in order.
        self.request_ids = [o.request_id for o in outputs]
        return [list(o.outputs[0].token_ids) for o in outputs]

    def counters(self) -> Counters:
        found = {m.name: m for m in self.llm.get_metrics() if m.name.startswith("vllm:spec_decode")}
        if not found:
            return Counters()
        return Counters(
            found["vllm:spec_decode_num_drafts"].value,
            found["vllm:spec_decode_num_draft_tokens"].value,
            found["vllm:spec_decode_num_accepted_tokens"].value,
            tuple(found["vllm:spec_decode_num_accepted_tokens_per_pos"].values),
        )

    @property
    def runner(self) -> Any:
        # Not through `compat`: engines of tests also run without the plugin, and must import nothing of it.
        return self.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner

    @property
    def on_v2(self) -> bool:
        """Whether this engine really is on Model Runner V2."""
        return any(cls.__module__ == "vllm.v1.worker.gpu.model_runner" for cls in type(self.runner).__mro__)


@functools.cache
def spare_imports_from_collection() -> None:
    """Keep the garbage collector from going through all that was imported each time that vLLM calls it.

    It does so a dozen times between an engine's start and its end, which made up most of a small engine's time.
    vLLM's own freezing is left out: it would hide engines from the collector, and undo ours.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)
    gc.freeze = gc.unfreeze = lambda: None


@contextlib.contextmanager
def engine(target: Path | str, head: Path | str | None = None, k: int = 4, **options: Any) -> Iterator[Engine]:
    """An engine for `target`, with `head` drafting `k` tokens if given."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    spare_imports_from_collection()
    speculative = options.pop("speculative", {})
    settings: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 16,
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        "disable_log_stats": False,
        "seed": 0,
        # Less than the smallest cache that can be asked for in bytes: writing zeros there takes as long as a test.
        "num_gpu_blocks_override": 256,
    }
    if head is not None:
        settings["speculative_config"] = {"model": str(head), "num_speculative_tokens": k, **speculative}
    llm = None
    try:
        llm = LLM(str(target), **{**settings, **options})
        yield Engine(llm)
    finally:
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()
