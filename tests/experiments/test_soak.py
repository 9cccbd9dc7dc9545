"""The soak's own judgement: what it must notice in answers, in memory and in a server that errs."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_eagle_plugin.benchmarks.methods import engine_arguments
from vllm_eagle_plugin.benchmarks.prompts import Question, read_prompts

from experiments import load, storm
from experiments.clients import Clients
from experiments.load import Entry, Plain, build, compare, fault, logprob_error
from experiments.options import tree_of
from experiments.rounds import Held, one_round
from experiments.storm import Growth, Seen, Storm, answer_plainly, leaks
from vllm_eagle_plugin.errors import HeadError
from vllm_eagle_plugin.servers import Server, flags

ENTRY = Entry(0, "greedy", [1, 2], load.GREEDY)
PLAIN = Plain([5, 6, 7, 8], [{5: -0.1, 9: -0.1004}, {6: -0.2, 9: -3.0}, {7: -0.3}, {8: -0.4}])


def choice(tokens: list[int], reason: str = "length", **more: Any) -> dict[str, Any]:
    return {"token_ids": tokens, "finish_reason": reason, "text": "", **more}


@pytest.mark.parametrize(
    ("found", "position", "tie"),
    [
        ([5, 6, 7], None, None),
        ([9, 6, 7], 0, True),  # a gap of 0.0004
        ([5, 9, 7], 1, False),  # one of 2.8
        ([5, 6, 9], 2, False),  # a token that plain decoding did not consider
        ([5, 6], 2, False),  # too few
        ([5, 6, 7, 8], 3, False),  # too many
    ],
)
def test_differences(found: list[int], position: int | None, tie: bool | None) -> None:
    different = compare(ENTRY, PLAIN, found, 3)
    assert (different and different.position) == position
    assert (different and different.tie(storm.TIE)) is tie


@pytest.mark.parametrize(
    ("entry", "answer", "words"),
    [
        (ENTRY, choice([1, 2, 3]), None),
        (ENTRY, choice([1], "stop"), None),
        (ENTRY, choice([1, 2]), "2 tokens where 3"),
        (ENTRY, choice([1, 2, 3, 4], "stop"), "4 tokens where 3"),
        (ENTRY, choice([1], "abort"), "finish_reason abort"),
        (Entry(0, "x", [1], {"min_tokens": 2}), choice([1], "stop"), "fewer than min_tokens"),
        (Entry(0, "x", [1], {"logprobs": 1}), choice([1], "stop", logprobs={"token_logprobs": []}), "0 logprobs"),
        (Entry(0, "greedy, structured", [1], {}), choice([1], "stop") | {"text": '{"na'}, "not JSON"),
        (Entry(0, "greedy, structured", [1], {}), choice([1], "stop") | {"text": "{}"}, "not as its schema"),
        (
            Entry(0, "greedy, structured", [1], {}),
            choice([1], "stop") | {"text": '{"name": "A", "age": 3, "likes": ["tea"]}'},
            None,
        ),
    ],
)
def test_faults(entry: Entry, answer: dict[str, Any], words: str | None) -> None:
    found = fault(entry, answer, 3)
    assert (found is None) is (words is None)
    assert words is None or words in (found or "")


def test_logprobs_are_compared_as_far_as_tokens_agree() -> None:
    answer = choice([5, 6, 1], logprobs={"token_logprobs": [-0.1, -0.25, -9.0]})
    assert logprob_error(PLAIN, answer) == pytest.approx(0.05)


def test_growth() -> None:
    """A leak is found behind a warm-up and under noise; a flat curve has none."""
    rng = random.Random(0)
    steps = [(5.0 * i, 900 + min(i, 40) * 20 + rng.uniform(-5, 5)) for i in range(240)]
    flat, leaking = (Growth.of([(s, mib + leak * s / 60) for s, mib in steps], warm_up=300.0) for leak in (0.0, 3.0))
    assert flat is not None
    assert leaking is not None
    assert abs(flat.mib_per_minute) < 0.3
    assert leaking.low < 3.0 < leaking.high
    assert Growth.of(steps[:4], warm_up=100.0) is None
    assert leaks(flat, None, 1.0) is False
    assert leaks(leaking, None, 1.0) is True
    assert leaks(leaking, flat, 1.0) is True
    assert leaks(leaking, leaking, 1.0) is False
    assert leaks(flat, leaking, 1.0) is False
    assert leaks(Growth.of(steps[:100], warm_up=300.0), None, 1.0) is None  # too short to tell


class Tokenizer:
    """One token a letter."""

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> list[int]:
        return [ord(letter) % 97 for letter in messages[0]["content"]]


def test_the_mix() -> None:
    entries = build(read_prompts("builtin"), Tokenizer(), 40, 300, seed=0)
    assert entries == build(read_prompts("builtin"), Tokenizer(), 40, 300, seed=0)
    assert {entry.kind for entry in entries} == set(load.KINDS) | set(load.STRUCTURED)
    assert len({len(entry.prompt) for entry in entries}) > 20
    assert max(len(entry.prompt) for entry in entries) == 300
    chance = random.Random(1)
    asked = [entry.request(chance, 30, 0.1) for entry in entries for _ in range(50)]
    gone = sum(request.hangs_up != "never" for request in asked)
    assert 0.06 < gone / len(asked) < 0.14
    assert {request.max_tokens for request in asked} == set(range(1, 31))
    assert all(request.max_tokens >= request.settings.get("min_tokens", 1) for request in asked)


def test_command(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    arguments = flags(engine_arguments(tree_of(str(tmp_path), "2,2/8").speculative))
    assert json.loads(arguments[1]) == {"model": str(tmp_path), "num_speculative_tokens": 8}
    assert json.loads(arguments[3]) == {"eagle": {"tree": {"kind": "static", "branches": [2, 2]}}}


@pytest.mark.parametrize(
    ("head", "tree", "words"),
    [(".", "bushy", "auto"), (".", "9x5/8", "top_k"), ("./nothing", "auto", "is not a folder")],
)
def test_what_cannot_be_served_is_refused_first(head: str, tree: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HeadError, match=words):
        tree_of(str(tmp_path / head), tree)


class Fake(BaseHTTPRequestHandler):
    """Continues a prompt by counting up; every tenth answer goes wrong in the way `failing` says."""

    failing, asked = "", 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked += 1
        wrong = self.failing if self.asked % 10 == 0 else ""
        tokens = [body["prompt"][-1] + i for i in range(1, body["max_tokens"] + 1)]
        if wrong == "tokens":
            tokens[-1] += 1
        logprobs = {"top_logprobs": [{f"token_id:{t}": -0.5} for t in tokens], "token_logprobs": [-0.5] * len(tokens)}
        self.send_response(500 if wrong == "refusal" else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [choice(tokens, logprobs=logprobs)]}).encode())

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def clients() -> Iterator[Clients]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Fake) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Clients(Server(f"http://127.0.0.1:{server.server_port}"), "m")
        server.shutdown()


def seen(clients: Clients, failing: str, monkeypatch: pytest.MonkeyPatch) -> Seen:
    entries = [
        Entry(0, "greedy", [1], load.GREEDY),
        Entry(1, "greedy, logprobs", [2, 3], load.GREEDY | {"logprobs": 1}),
        Entry(2, "greedy, structured", [4], load.STRUCTURED["greedy, structured"]),
    ]
    monkeypatch.setattr(Fake, "failing", "")
    plain = answer_plainly(clients, entries, 9, 2)
    assert plain[1].tokens == list(range(4, 13))
    monkeypatch.setattr(Fake, "failing", failing)
    monkeypatch.setattr(Fake, "asked", 0)
    monkeypatch.setattr(storm, "SAMPLE_SECONDS", 0.1)
    found, curve = Storm(entries, plain, 9, 0.0, 3, seed=0).run(clients, 1.0)
    assert len(curve) > 2
    assert sum(found.compared.values()) > 10
    assert found.logprob_error < 1e-9
    return found


def test_a_server_that_is_right(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    found = seen(clients, "", monkeypatch)
    assert (found.errors, found.bugs()) == ([], [])


def test_wrong_tokens_are_noticed(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    found = seen(clients, "tokens", monkeypatch)
    assert found.errors == []
    assert len(found.bugs()) == len(found.differences) >= 1


def test_refusals_are_noticed(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    found = seen(clients, "refusal", monkeypatch)
    assert found.errors
    assert all("answered 500" in error for error in found.errors)


def test_a_server_that_is_gone_ends_the_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storm, "SAMPLE_SECONDS", 0.1)
    gone = Clients(Server("http://127.0.0.1:9"), "m")
    entries = [ENTRY, Entry(1, "greedy, structured", [4], load.STRUCTURED["greedy, structured"])]
    found, _ = Storm(entries, {}, 9, 0.0, 3, seed=0).run(gone, 60.0)
    assert len(found.errors) == 15


def test_a_prompt_of_every_length_is_met_before_memory_is_watched() -> None:
    asked: list[Any] = []

    class Recorder:
        def complete(self, request: Any) -> None:
            asked.append(request)

    recorder: Any = Recorder()
    storm.every_size(recorder, 40)
    assert [len(request.prompt) for request in asked] == [*range(1, 41)]
    assert all(request.max_tokens == 1 for request in asked)
    assert len({tuple(request.prompt[:4]) for request in asked[3:]}) == 37, "none is answered from the prefix cache"


def test_a_round_asks_everything_and_what_is_kept_is_seen() -> None:
    asked: list[tuple[int, float, int]] = []

    class Recorder:
        def run(self, questions: Any, sampling: Any, concurrency: int, done: Any) -> list[str]:
            for question in questions:
                asked.append((question.index, sampling.temperature, concurrency))
                done(question)
            return ["too long"] if any(q.index == 99 for q in questions) else []

        def forget(self) -> None: ...

        def take_steps(self) -> None: ...

    recorder: Any = Recorder()
    assert one_round(recorder, [Question(i, str(i)) for i in range(12)], 8) == 12
    assert sorted(index for index, _, _ in asked) == [*range(12)]
    assert {(temperature, at_a_time) for _, temperature, at_a_time in asked} == {
        (t, n) for t in (0, 1) for n in (1, 4, 12)
    }
    before = Held.now()
    kept = torch.ones(2**20)
    after = Held.now()
    assert after.tensors == before.tensors + 1
    assert after.tensor_mib - before.tensor_mib == pytest.approx(kept.nbytes / 2**20)
    with pytest.raises(HeadError, match="refused 1 of 1"):
        one_round(recorder, [Question(99, "99")], 8)
