"""A running server, its /metrics, `vllm bench serve` and our measurement: the same acceptance, to the last digit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm_eagle_plugin.benchmarks.acceptance import measure
from vllm_eagle_plugin.benchmarks.prompts import Question, read_prompts
from vllm_eagle_plugin.benchmarks.remote import Remote, scrape
from vllm_eagle_plugin.benchmarks.schema import AcceptanceResult
from vllm_eagle_plugin.benchmarks.session import Sampling

from vllm_eagle_plugin.demo.server import Server, serve
from vllm_eagle_plugin.errors import HeadError

from .language import K, Language, text
from .test_acceptance import workload

pytestmark = pytest.mark.engine
TOKENS, PROMPTS = 24, 8
ARGUMENTS = ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "8", "--enforce-eager"]


@pytest.fixture(scope="module")
def server(language: Language, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    speculative = json.dumps({"model": str(language.head), "num_speculative_tokens": K})
    log = tmp_path_factory.mktemp("server") / "serve.log"
    detailed = ["--per-request-spec-decode-metrics", "detailed"]
    with serve(language.target, log, *ARGUMENTS, *detailed, "--speculative-config", speculative) as running:
        yield running


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text([i, i + 1, 3 * i])}) + "\n" for i in range(PROMPTS)))
    return file


def ask(server: Server, prompts: Path, concurrency: int = 1) -> AcceptanceResult:
    questions = read_prompts(str(prompts))
    about = workload(concurrency=concurrency, max_tokens=TOKENS)
    return measure(Remote(server.url), questions, Sampling(max_tokens=TOKENS), concurrency, about)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_exact_over_http(server: Server, prompts: Path, language: Language, concurrency: int) -> None:
    result = ask(server, prompts, concurrency)
    for record in result.eagle.requests:
        prompt = [3 * record.question]
        assert record.accepted == language.accepted(prompt, TOKENS)
        assert record.token_ids == language.answer(prompt, TOKENS)
        assert record.trimmed in (None, 1 + sum(a + 1 for a in record.accepted) - TOKENS)
    assert not result.eagle.notes, "our requests and /metrics should agree"
    if concurrency == 1:  # otherwise two steps may arrive as one chunk
        assert result.eagle.acceptance.trimmed_tokens is not None


def test_equal_to_vllm_bench_serve(server: Server, prompts: Path, tmp_path: Path) -> None:
    ours = json.loads(ask(server, prompts).model_dump_json())
    command = [
        str(Path(sys.executable).with_name("vllm")), "bench", "serve", "--base-url", server.url,
        "--dataset-name", "custom", "--dataset-path", str(prompts), "--skip-chat-template", "--num-prompts", str(PROMPTS),
        "--custom-output-len", str(TOKENS), "--temperature", "0", "--max-concurrency", "1", "--disable-shuffle",
        "--save-result", "--save-detailed", "--result-dir", str(tmp_path), "--result-filename", "theirs.json",
        "--num-warmups", "0", "--ready-check-timeout-sec", "0", "--disable-tqdm",
    ]  # fmt: skip
    before = scrape(server.url)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    after = scrape(server.url)
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    figures = [name for name in theirs if name.startswith("spec_decode_")]
    assert len(figures) == 6
    assert {name: ours[name] for name in figures} == {name: theirs[name] for name in figures}
    drafts, accepted = (
        after[name] - before[name]
        for name in ("vllm:spec_decode_num_drafts_total", "vllm:spec_decode_num_accepted_tokens_total")
    )
    assert ours["spec_decode_acceptance_length"] == 1 + accepted / drafts
    assert ours["output_lens"] == theirs["output_lens"]
    assert ours["input_lens"] == theirs["input_lens"]
    theirs_only = set(theirs) - set(ours)
    assert not {name for name in theirs_only if name.endswith(("_ms", "throughput", "lens", "s_tokens"))}, theirs_only


def test_totals_where_requests_are_not_reported(server: Server, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = ask(server, prompts)
    monkeypatch.setattr("vllm_eagle_plugin.benchmarks.remote._Stream.take", _without_metrics())
    totals = ask(server, prompts)
    assert totals.eagle.source == "counters"
    assert totals.spec_decode_acceptance_length == exact.spec_decode_acceptance_length
    assert totals.eagle.acceptance.acceptance_length.low is None
    assert [f.value for f in totals.eagle.acceptance.conditional] == [
        f.value for f in exact.eagle.acceptance.conditional
    ]
    assert totals.eagle.by_category == totals.eagle.by_prompt_length == []
    assert "detailed" in totals.eagle.notes[0]


def _without_metrics() -> object:
    from vllm_eagle_plugin.benchmarks.remote import _Stream

    take = _Stream.take
    return lambda self, chunk: take(self, {k: v for k, v in chunk.items() if k != "metrics"})


def test_chat_and_refusals(server: Server, language: Language) -> None:
    chat = Question(0, "0", messages=({"role": "user", "content": text([3, 5])},), later=(text([7]),))
    too_long = Question(1, "1", prompt=text([1] * 300))
    result = measure(Remote(server.url), [chat, too_long], Sampling(max_tokens=6), 2, workload())
    first, second = result.eagle.requests
    assert first.token_ids == language.answer([5], 6)
    assert second.token_ids == language.answer([7], 6)
    assert result.failed == 1
    assert "400" in result.errors[-1]


def test_no_server_and_no_speculation(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HeadError, match="cannot be read"):
        Remote("http://127.0.0.1:9")
    plain = {k: v for k, v in server.metrics().items() if "spec_decode" not in k}
    monkeypatch.setattr(Server, "metrics", lambda self: plain)
    with pytest.raises(HeadError, match=r"does not speculate.*--speculative-config"):
        Remote(server.url)
    monkeypatch.setattr(Server, "metrics", lambda self: {"go_threads": 3.0})
    with pytest.raises(HeadError, match="no vLLM metrics"):
        Remote(server.url)
