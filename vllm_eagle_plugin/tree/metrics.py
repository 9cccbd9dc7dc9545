"""What trees did, as Prometheus metrics beside vLLM's own.

vLLM's counters keep their meaning: `spec_decode_num_draft_tokens` counts nodes, `..._accepted_tokens_per_pos`
accepted tokens by depth. These say what it has no name for. They are counted in the worker; `relay` brings them to
the server's /metrics.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client import Counter as Metric

from .relay import relay_here

#: What each counts, and by what.
_NAMES = {
    "vllm:eagle_trees": ("Draft trees verified, by depth", "depth"),
    "vllm:eagle_tree_nodes": ("Nodes of the draft trees verified, by depth of the tree", "depth"),
    "vllm:eagle_tree_accepted": ("Draft trees by how many of their tokens were accepted", "accepted"),
    "vllm:eagle_fallback_requests": ("Requests that could not draft as asked, by reason", "reason"),
}


class Metrics:
    """Counts for the report and for Prometheus alike."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in _NAMES}
        self._publishes, self._relay = _speaks_for_all(), relay_here()

    def verified(self, nodes: int, depth: int, accepted: int) -> None:
        self._add("vllm:eagle_trees", str(depth))
        self._add("vllm:eagle_tree_nodes", str(depth), nodes)
        self._add("vllm:eagle_tree_accepted", str(accepted))

    def fell_back(self, reason: str) -> None:
        self._add("vllm:eagle_fallback_requests", reason)

    def report(self) -> dict[str, Any]:
        """Counts by label: trees and nodes by depth, trees by tokens accepted, requests by reason."""
        return {name.removeprefix("vllm:eagle_"): dict(counts) for name, counts in self._counts.items()}

    def _add(self, name: str, value: str, amount: int = 1) -> None:
        self._counts[name][value] += amount
        if not self._publishes:
            return
        text, label = _NAMES[name]
        if self._relay is not None:
            self._relay.add(name, text, label, value, amount)
        else:
            _metric(name, text, label).labels(value).inc(amount)


def _speaks_for_all() -> bool:
    """Whether this rank's counts are those of its engine: all ranks of a group count the same trees."""
    from vllm.distributed.parallel_state import get_tp_group, model_parallel_is_initialized

    return not model_parallel_is_initialized() or get_tp_group().is_first_rank


def _metric(name: str, text: str, label: str) -> Metric:
    """A metric of this name, of an engine that this process ran before if there is one."""
    found = getattr(REGISTRY, "_names_to_collectors", {}).get(name)
    return found if isinstance(found, Metric) else Metric(name, text, [label])
