"""A real `vllm serve` under a storm of requests, many of which hang up: it stays right, and so do its counters."""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from vllm_eagle_plugin.demo.server import Server, serve

from .cases import CASES, SUBSET
from .engine import Counters
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


@dataclass(frozen=True)
class Client:
    """One request of the storm, and when it hangs up: never, before the first chunk, or after it."""

    prompt: list[int]
    max_tokens: int
    temperature: float
    hangs_up: str = "never"


@dataclass(frozen=True)
class Asking:
    """Asks a server in token ids; it has no tokenizer."""

    server: Server
    target: Target

    def complete(self, client: Client) -> list[int]:
        answer = self.server.post("/v1/completions", self._body(client))
        return answer["choices"][0]["token_ids"]

    def hang_up(self, client: Client) -> None:
        """Start a stream and close the connection; the server learns of it only by that."""
        connection = http.client.HTTPConnection(urlsplit(self.server.url).netloc, timeout=120)
        body = json.dumps({**self._body(client), "stream": True})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        if client.hangs_up == "after a chunk":
            stream = connection.getresponse()
            assert stream.status == 200
            first = json.loads(stream.readline().removeprefix(b"data: "))
            assert first["choices"][0]["finish_reason"] is None
            stream.close()
        connection.close()

    def run(self, client: Client) -> list[int] | None:
        """The answer, or None where the client hung up."""
        return self.complete(client) if client.hangs_up == "never" else self.hang_up(client)

    def counters(self) -> Counters:
        found, prefix = self.server.metrics(), "vllm:spec_decode_num_"
        return Counters(
            int(found[prefix + "drafts_total"]),
            int(found[prefix + "draft_tokens_total"]),
            int(found[prefix + "accepted_tokens_total"]),
            tuple(int(found[f"{prefix}accepted_tokens_per_pos_total[{i}]"]) for i in range(K)),
        )

    def settled(self, seconds: float = 20) -> Counters:
        """The counters once nothing runs or waits any more."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            before = self.counters()
            time.sleep(0.3)
            if not self.unfinished() and self.counters() == before:
                return before
        raise AssertionError(f"{self.unfinished()} requests left after {seconds} s")

    def unfinished(self) -> float:
        found = self.server.metrics()
        return found["vllm:num_requests_running"] + found["vllm:num_requests_waiting"]

    def _body(self, client: Client) -> dict:
        return {
            "model": str(self.target.folder),
            "prompt": client.prompt,
            "max_tokens": client.max_tokens,
            "temperature": client.temperature,
            "ignore_eos": True,
            "return_token_ids": True,
        }


def storm(target: Target) -> list[Client]:
    """The same mix each time; a quarter hangs up, some of them before they have got anything."""
    chance, clients = random.Random(0), []
    for i in range(REQUESTS):
        prompt = target.walk(int(target.successor[i % VOCAB]), chance.randint(1, 40))
        temperature = chance.choice(TEMPERATURES)
        if i % 4:
            clients.append(Client(prompt, chance.randint(1, 24), temperature))
        else:
            when = "before a chunk" if i % 16 == 0 else "after a chunk"
            clients.append(Client(prompt, ABORTED_TOKENS, temperature, when))
    return clients


def assert_right(target: Target, client: Client, answer: list[int]) -> None:
    assert len(answer) == client.max_tokens
    if client.temperature < HOT:
        assert answer == target.walk(client.prompt[-1], client.max_tokens + 1)[1:]
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
        "feature",
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
        asking, clients = Asking(server, target), storm(target)
        with ThreadPoolExecutor(WORKERS) as pool:
            answers = list(pool.map(asking.run, clients))

        urllib.request.urlopen(server.url + "/health", timeout=10).close()
        after = Client(target.walk(3, 5), 24, 0.0)
        assert_right(target, after, asking.complete(after))
        for client, answer in zip(clients, answers, strict=True):
            if answer is not None:
                assert_right(target, client, answer)
        stormy = asking.settled()
        assert_adds_up(stormy)
        assert stormy.accepted < stormy.draft_tokens, "the hot requests should have had drafts rejected"
        finished = sum(c.max_tokens for c in clients if c.hangs_up == "never") + after.max_tokens
        wasted = server.metrics()["vllm:generation_tokens_total"] - finished
        aborted = sum(c.hangs_up != "never" for c in clients)
        assert wasted < aborted * ABORTED_TOKENS / 2, "requests went on after their clients had hung up"

        quiet = [Client(target.walk(i % VOCAB, 4), 21, 0.0) for i in range(WORKERS)]
        with ThreadPoolExecutor(WORKERS) as pool:
            for client, answer in zip(quiet, pool.map(asking.complete, quiet), strict=True):
                assert_right(target, client, answer)
        counted = asking.settled() - stormy
        assert_adds_up(counted)
        assert counted.accepted == counted.draft_tokens, f"rejected drafts: {counted}"
        assert asking.unfinished() == 0
