"""A real `vllm serve` under a storm of requests, many of which hang up: it stays right, and so do its counters."""

from __future__ import annotations

import json
import random
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_eagle_plugin.benchmarks.remote import speculative_counters
from vllm_eagle_plugin.benchmarks.session import Counters

from experiments.clients import Clients, HangsUp, Request
from vllm_eagle_plugin.servers import serve

from .cases import CASES, SUBSET
from .known_answer import Target, build_target, known_answer_head, save_head
from .known_answer.target import VOCAB, cycle

pytestmark = pytest.mark.engine
K, REQUESTS, WORKERS = 4, 200, 32
#: With logits this far apart the language leaves no choice at temperature 0.2, but nearly a third at 2.
MARGIN, TEMPERATURES, HOT = 8.0, (0.0, 0.0, 0.2, 2.0), 2.0
#: Longer than any storm, so that those who hang up do it in the middle.
ABORTED_TOKENS = 200
ARGUMENTS = [
    "--dtype",
    "float32",
    "--max-model-len",
    "256",
    "--max-num-seqs",
    "16",
    "--enforce-eager",
    "--skip-tokenizer-init",
]


def request(prompt: list[int], max_tokens: int, temperature: float, hangs_up: HangsUp = "never") -> Request:
    return Request(prompt, max_tokens, {"temperature": temperature, "ignore_eos": True}, hangs_up)


def settled(clients: Clients) -> Counters:
    """The counters once nothing runs or waits any more."""
    while True:
        clients.wait_until_idle()
        before = counters(clients)
        time.sleep(0.3)
        if not clients.unfinished() and counters(clients) == before:
            return before


def counters(clients: Clients) -> Counters:
    found = speculative_counters(clients.server.metrics())
    assert found is not None
    assert len(found.per_position) == K
    return found


def storm(target: Target) -> list[Request]:
    """The same mix each time; a quarter hangs up, some of them before they have got anything."""
    chance, requests = random.Random(0), []
    for i in range(REQUESTS):
        prompt = target.walk(int(target.successor[i % VOCAB]), chance.randint(1, 40))
        temperature = chance.choice(TEMPERATURES)
        if i % 4:
            requests.append(request(prompt, chance.randint(1, 24), temperature))
        else:
            when: HangsUp = "before a chunk" if i % 16 == 0 else "after a chunk"
            requests.append(request(prompt, ABORTED_TOKENS, temperature, when))
    return requests


def assert_right(target: Target, asked: Request, choice: dict[str, Any]) -> None:
    answer = choice["token_ids"]
    assert len(answer) == asked.max_tokens
    if asked.settings["temperature"] < HOT:
        assert answer == target.walk(asked.prompt[-1], asked.max_tokens + 1)[1:]
    assert all(0 <= token < len(target.successor) for token in answer)


def assert_adds_up(counted: Counters) -> None:
    assert counted.drafts > 0
    assert counted.draft_tokens == K * counted.drafts
    assert counted.accepted == sum(counted.per_position) <= counted.draft_tokens
    assert list(counted.per_position) == sorted(counted.per_position, reverse=True)
    assert counted.per_position[0] <= counted.drafts


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("feature", marks=pytest.mark.extended),
        pytest.param("surgery", marks=pytest.mark.extended),
        pytest.param("projection", marks=pytest.mark.extended),
        pytest.param("eagle-fc-bias", marks=pytest.mark.extended),
        "eagle3-reduced",
    ],
)
def test_storm(name: str, head_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)  # as users serve
    config = CASES[name]()
    subset = SUBSET if config.reduced_vocab else None
    logits = MARGIN * torch.eye(VOCAB)[cycle(VOCAB, subset)]
    target = build_target(tmp_path / "target", subset=subset, logits=logits)
    save_head(known_answer_head(config, target, K), head_folder)
    speculative = json.dumps({"model": str(head_folder), "num_speculative_tokens": K})
    with serve(target.folder, tmp_path / "serve.log", *ARGUMENTS, "--speculative-config", speculative) as server:
        clients, requests = Clients(server, str(target.folder)), storm(target)
        with ThreadPoolExecutor(WORKERS) as pool:
            answers = list(pool.map(clients.run, requests))

        urllib.request.urlopen(server.url + "/health", timeout=10).close()
        after = request(target.walk(3, 5), 24, 0.0)
        assert_right(target, after, clients.complete(after))
        for asked, answer in zip(requests, answers, strict=True):
            if answer is not None:
                assert_right(target, asked, answer)
        stormy = settled(clients)
        assert_adds_up(stormy)
        assert stormy.accepted < stormy.draft_tokens, "the hot requests should have had drafts rejected"
        finished = sum(r.max_tokens for r in requests if r.hangs_up == "never") + after.max_tokens
        wasted = server.metrics()["vllm:generation_tokens_total"] - finished
        aborted = sum(r.hangs_up != "never" for r in requests)
        assert wasted < aborted * ABORTED_TOKENS / 2, "requests went on after their clients had hung up"

        quiet = [request(target.walk(i % VOCAB, 4), 21, 0.0) for i in range(WORKERS)]
        with ThreadPoolExecutor(WORKERS) as pool:
            for asked, answer in zip(quiet, pool.map(clients.complete, quiet), strict=True):
                assert_right(target, asked, answer)
        counted = settled(clients) - stormy
        assert_adds_up(counted)
        assert counted.accepted == counted.draft_tokens, f"rejected drafts: {counted}"
        assert clients.unfinished() == 0
