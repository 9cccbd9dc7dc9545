"""Draft trees and adaptive draft length on stock vLLM. See docs/trees.md."""

from __future__ import annotations

from typing import Any

#: Key of vLLM's additional config under which they are asked for, and the worker that serves them.
SECTION, WORKER = "eagle", "vllm_eagle_plugin.TreeWorker"


def section(additional_config: Any) -> Any:
    """What an additional config says of trees and adaptive length; None: nothing."""
    return additional_config.get(SECTION) if isinstance(additional_config, dict) else None


def asks_for_trees(vllm_config: Any) -> bool:
    """Whether any piece of a `VllmConfig` is there that only trees or adaptive length need."""
    return section(vllm_config.additional_config) is not None or vllm_config.parallel_config.worker_cls == WORKER


def proposer_class(vllm_config: Any) -> type | None:
    """The proposer of the V1 runner that drafts trees; None where none are asked for."""
    if not asks_for_trees(vllm_config):
        return None
    from .draft_v1 import proposer_class

    return proposer_class(vllm_config)
