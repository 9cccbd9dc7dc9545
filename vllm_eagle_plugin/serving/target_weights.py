"""What a draft head takes from the target it serves, and what says that it is the right one; for both model runners."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from vllm.distributed.parallel_state import get_pp_group
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from ..errors import HeadError
from ..fingerprint import check_embedding
from ..preflight import draft_config, provenance


def share_embedding(head: nn.Module, target: nn.Module, width: int) -> None:
    """Lend `head` the embedding of the language model `target`, unless it has its own.

    Raises:
        HeadError: the target has none of this width, or keeps it on another pipeline stage.
    """
    if getattr(head, "has_own_embed_tokens", False):
        return
    if get_pp_group().world_size > 1:
        raise HeadError(
            "pipeline parallelism with a head that uses the target's embedding",
            "The embedding lives on the first stage, the head on the last",
            "Convert the head with its own embedding, or use tensor parallelism",
        )
    head.model.embed_tokens = find_embedding(target, width)


def share_lm_head(head: nn.Module, target: nn.Module) -> None:
    """Lend `head` the output projection of the language model `target`, unless it has its own."""
    if not getattr(head, "has_own_lm_head", False):
        head.lm_head = find_lm_head(target)


def check_target(vllm_config: Any, target: nn.Module) -> None:
    """Compare the language model `target` with the fingerprint in the head's config.

    Raises:
        HeadError: the head was made for other weights.
    """
    fingerprint = provenance(draft_config(vllm_config)).get("target")
    if not fingerprint or get_pp_group().world_size > 1:
        return
    embedding = find_embedding(target, fingerprint["hidden_size"])
    weight = getattr(embedding, "weight", None)
    if isinstance(weight, Tensor):
        shard = embedding.shard_indices
        rows = shard.org_vocab_end_index - shard.org_vocab_start_index
        check_embedding(fingerprint, weight[:rows], shard.org_vocab_start_index, vllm_config.model_config.model)


def find_embedding(model: nn.Module, width: int) -> nn.Module:
    """The input embedding table of a vLLM target: its one vocabulary embedding of this width."""
    tables = {
        id(m): (name, m)
        for name, m in model.named_modules()
        if isinstance(m, VocabParallelEmbedding) and not isinstance(m, ParallelLMHead) and m.embedding_dim == width
    }
    if len(tables) != 1:
        names = [name for name, _ in tables.values()]
        raise HeadError(
            f"the target {type(model).__name__} has {len(tables)} embedding tables of width {width}: {names}",
            "One was expected, for the head to use",
            "Convert the head with its own embedding",
        )
    ((_, table),) = tables.values()
    return table


def find_lm_head(model: nn.Module) -> nn.Module:
    """The output projection of a vLLM target; its embedding where the two are tied without a name."""
    if isinstance(getattr(model, "lm_head", None), nn.Module):
        return model.lm_head
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            return module
    return find_embedding(model, model.config.get_text_config().hidden_size)


def _language_model(model: nn.Module) -> nn.Module:
    get = getattr(model, "get_language_model", None)
    return get() if callable(get) else model


def language_model(model: nn.Module) -> nn.Module:
    """The part of a multimodal target that reads and writes tokens; a text model itself."""
    get = getattr(model, "get_language_model", None)
    return get() if callable(get) else model
