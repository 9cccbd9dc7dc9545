"""A running server, its /metrics, `vllm bench serve` and our measurement: the same acceptance, to the last digit."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from vllm_eagle_plugin.benchmarks import live
from vllm_eagle_plugin.benchmarks.acceptance import measure
from vllm_eagle_plugin.benchmarks.prompts import Question, read_prompts
from vllm_eagle_plugin.benchmarks.remote import Remote, scrape
from vllm_eagle_plugin.benchmarks.schema import AcceptanceResult
from vllm_eagle_plugin.benchmarks.session import Counters, Sampling

from vllm_eagle_plugin.errors import HeadError
from vllm_eagle_plugin.servers import Server, serve

from .command import run_cli
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


def test_live(server: Server, prompts: Path) -> None:
    """What `live` says of some time is what was asked in that time."""
    first = live.sample(server.url)
    result = ask(server, prompts)
    last = live.sample(server.url)
    now = live.between(first, last)
    warm_up = now["spec_decode_num_drafts"] - result.spec_decode_num_drafts
    assert 0 < warm_up <= 8
    seconds = last.time - first.time
    assert now["accepted_tokens_per_second"] == pytest.approx(now["spec_decode_accepted_tokens"] / seconds)
    assert now["output_tokens_per_second"] == pytest.approx((PROMPTS * TOKENS + 8) / seconds)
    rates = now["spec_decode_per_position_acceptance_rates"]
    assert sum(rates) == pytest.approx(now["spec_decode_acceptance_length"] - 1)
    restarted = live.Sample(9.0, Counters(9**9, 9**9, 9**9, (0, 0, 0)), 9e9, 0, 0)
    assert live.between(restarted, last)["spec_decode_num_drafts"] == last.counters.drafts
    shown = run_cli("bench", "live", server.url, "--once", "--json", "--interval", 0.2)
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["since_start"]["spec_decode_num_drafts"] == last.counters.drafts
    assert found["now"]["spec_decode_acceptance_length"] is None
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(live.view(server.url, deque([first, last])))
    text_shown = console.export_text()
    assert f"{now['spec_decode_acceptance_length']:.3f}" in text_shown
    assert "position 3" in text_shown


def test_live_of_nothing() -> None:
    done = run_cli("bench", "live", "http://127.0.0.1:9", "--once", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: http://127.0.0.1:9/metrics cannot be read")
    assert done.stderr.count("\n") == 1


def test_dashboard_and_rules_name_what_the_server_exports(server: Server) -> None:
    exported = {name.split("[")[0] for name in server.metrics()}
    folder = Path(live.__file__).with_name("monitoring")
    dashboard = json.loads((folder / "grafana.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [rule for group in yaml.safe_load((folder / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    named = {name for expr in panels + [r["expr"] for r in rules] for name in re.findall(r"vllm:[a-z0-9_:]+", expr)}
    assert len(named) > 5
    assert named - recorded <= exported
    assert sum("alert" in rule for rule in rules) == 2


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
