"""Counters of a worker in another process reach the front end's registry, and a server's /metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from prometheus_client import REGISTRY

from vllm_eagle_plugin.servers import serve
from vllm_eagle_plugin.tree import relay

from ..cases import CASES
from ..known_answer import known_answer_head, save_head

#: A worker: what it inherits is its environment.
WORKER = """
from vllm_eagle_plugin.tree.relay import relay_here
counters = relay_here()
for _ in range(3):
    counters.add("vllm:eagle_test", "Of a test", "depth", "2", 5)
counters.add("vllm:eagle_test", "Of a test", "depth", "1", 1)
"""


@pytest.fixture
def front_end(monkeypatch: pytest.MonkeyPatch):
    """A process in which nothing was opened yet; what it registers is taken back."""
    monkeypatch.delenv(relay.FOLDER, raising=False)
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setattr(relay, "_opened", None)
    before = set(REGISTRY._collector_to_names)
    yield
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


def counted() -> dict[str, float]:
    found = {}
    for metric in REGISTRY.collect():
        if metric.name == "vllm:eagle_test":
            assert (metric.type, metric.documentation) == ("counter", "Of a test")
            found |= {sample.labels["depth"]: sample.value for sample in metric.samples}
    return found


def test_workers_add_up(front_end: None) -> None:
    relay.open_relay()
    relay.open_relay()
    assert relay.relay_here() is None, "an engine in the front end's own process counts in its registry"
    assert counted() == {}
    for times in (1, 2):
        subprocess.run([sys.executable, "-c", WORKER], check=True, timeout=120)
        assert counted() == {"2": 15.0 * times, "1": 1.0 * times}


def test_left_to_prometheus_where_it_is_set_up(front_end: None, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    relay.open_relay()
    assert relay.FOLDER not in os.environ
    assert relay.relay_here() is None


def test_a_folder_that_is_gone_stops_nobody(front_end: None, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv(relay.FOLDER, str(tmp_path / "gone"))
    assert relay.relay_here() is None
    relay.open_relay()
    assert os.path.isdir(os.environ[relay.FOLDER])


SETTINGS = [
    "--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "2", "--enforce-eager", "--skip-tokenizer-init",
]  # fmt: skip


@pytest.mark.engine
def test_shown_by_a_server(front_end: None, targets, head_folder, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many trees and nodes as vLLM itself counts drafts and drafted tokens."""
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)  # as users serve
    target, branches = targets("llama"), [2, 1, 1]
    save_head(known_answer_head(CASES["feature"](), target), head_folder)
    speculative = {"model": str(head_folder), "num_speculative_tokens": 6}
    additional = {"eagle": {"tree": {"kind": "static", "branches": branches}}}
    asked = {"--speculative-config": speculative, "--additional-config": additional}
    arguments = [word for option, value in asked.items() for word in (option, json.dumps(value))]
    with serve(target.folder, tmp_path / "log", *SETTINGS, *arguments, start_seconds=500) as server:
        body = {"model": str(target.folder), "prompt": target.walk(3, 5), "max_tokens": 21, "temperature": 0}
        server.post("/v1/completions", {**body, "return_token_ids": True, "ignore_eos": True})
        found = server.metrics()
    assert found["vllm:eagle_trees_total"] == found["vllm:spec_decode_num_drafts_total"] == 5
    assert found["vllm:eagle_tree_nodes_total"] == found["vllm:spec_decode_num_draft_tokens_total"] == 30
    assert found["vllm:eagle_tree_accepted_total"] == 5
