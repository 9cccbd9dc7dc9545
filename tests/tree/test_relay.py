"""Counters of a worker in another process reach the front end's registry."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from prometheus_client import REGISTRY

from vllm_eagle_plugin.tree import relay

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
