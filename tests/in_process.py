"""vLLM's draft model of a written head, called in this process without an engine: only its attention is replaced."""

from __future__ import annotations

import contextlib
import copy
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vllm_eagle_plugin.configs import Eagle3Config
from vllm_eagle_plugin.reference import ReferenceHead


class DenseAttention(nn.Module):
    """What vLLM's `Attention` computes for one request, over keys and values that it keeps itself."""

    def __init__(
        self, num_heads: int, head_size: int, scale: float, num_kv_heads: int | None = None, cache_config: Any = None,
        per_layer_sliding_window: int | None = None, **others: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape, self.scale = (num_heads, num_kv_heads or num_heads, head_size), scale
        inherited = None if cache_config is None else cache_config.sliding_window
        self.window = inherited if per_layer_sliding_window is None else per_layer_sliding_window
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, kv_heads, width = self.shape
        self.seen.append((k.view(-1, kv_heads, width), v.view(-1, kv_heads, width)))
        keys, values = (
            torch.cat(parts).repeat_interleave(heads // kv_heads, 1) for parts in zip(*self.seen, strict=True)
        )
        ends = torch.arange(len(keys))[-len(q) :]
        at = torch.arange(len(keys))
        mask = at[None] <= ends[:, None]
        if self.window is not None:
            mask &= at[None] > ends[:, None] - self.window
        scores = torch.einsum("qhd,khd->hqk", q.view(-1, heads, width), keys) * self.scale
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~mask, float("-inf")).softmax(-1), values).flatten(1)


@contextlib.contextmanager
def one_rank() -> Iterator[None]:
    """torch.distributed with this process alone, as vLLM's layers want it."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"tcp://127.0.0.1:{port}", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        yield
    cleanup_dist_env_and_memory()


def engine_config(target: Path, head: Path, speculative: dict[str, Any]) -> Any:
    """vLLM's own reading of the two folders."""
    from vllm.engine.arg_utils import EngineArgs

    arguments = EngineArgs(
        model=str(target), dtype="float32", enforce_eager=True, skip_tokenizer_init=True,
        speculative_config={"model": str(head), "num_speculative_tokens": 3, **speculative},
    )  # fmt: skip
    return arguments.create_engine_config()


def draft_model(target: Path, head: Path, speculative: dict[str, Any], reference: ReferenceHead) -> nn.Module:
    """The model that vLLM builds for the head, loaded, with the target's tables lent to it."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import initialize_model, process_weights_after_loading

    config = engine_config(target, head, speculative)
    places = ("vllm.model_executor.models.llama.Attention", "vllm.model_executor.models.qwen3.Attention",
              "vllm_eagle_plugin.serving.models.layers.Attention")  # fmt: skip
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(mock.patch(place, DenseAttention))
        stack.enter_context(set_current_vllm_config(config))
        draft = config.speculative_config.draft_model_config
        model = initialize_model(config, model_config=draft)
        model.load_weights(iter(load_file(head / "model.safetensors").items()))
        process_weights_after_loading(model, draft, torch.device("cpu"))
        if not reference.config.own_embedding:
            weight = reference.target_embedding
            model.model.embed_tokens = nn.Embedding.from_pretrained(weight)
    return model.eval()


@torch.no_grad()
def chain(model: nn.Module, reference: ReferenceHead, tokens: Tensor, hidden: Tensor, drafts: list[int]) -> Tensor:
    """Logits [steps, Vd] behind `tokens` [T + 1], as `tests.oracle` gives them."""
    config = reference.config
    eagle3 = isinstance(config, Eagle3Config)
    state = model.combine_hidden_states(hidden) if eagle3 else hidden
    ids, positions, logits = tokens[1:], torch.arange(len(tokens) - 1), []
    for step in range(len(drafts) + 1):
        out, fed = model(ids, positions, state)
        logits.append(_logits(model, reference, out[-1:])[0])
        if step < len(drafts):
            ids, state, positions = torch.tensor([drafts[step]]), fed[-1:], positions[-1:] + 1
    return by_target_id(reference, torch.stack(logits))


def by_target_id(head: ReferenceHead, logits: Tensor) -> Tensor:
    """Logits [steps, Vd] in the order of the target's tokens: trainers sort draft tokens as they like."""
    return logits if head.d2t is None else logits[:, (torch.arange(len(head.d2t)) + head.d2t).argsort()]


def _logits(model: nn.Module, reference: ReferenceHead, out: Tensor) -> Tensor:
    if not reference.config.own_lm_head:  # vLLM attaches the target's
        scaled = copy.copy(model.logits_processor)
        lent = nn.functional.linear(out, reference.target_lm_head)
        cap = scaled.soft_cap
        return (torch.tanh(lent / cap) * cap if cap else lent) * scaled.scale
    full = model.compute_logits(out)
    ids = torch.arange(reference.config.draft_vocab)
    return full[:, ids if reference.d2t is None else ids + reference.d2t]
