"""A server that dies in the middle of a run, and one that talks nonsense: one error, and what was done is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from vllm_eagle_plugin.benchmarks.acceptance import measure
from vllm_eagle_plugin.benchmarks.prompts import Question
from vllm_eagle_plugin.benchmarks.remote import Remote
from vllm_eagle_plugin.benchmarks.session import Sampling

from .test_acceptance import workload

METRICS = """vllm:spec_decode_num_drafts_total{model_name="m"} 3
vllm:spec_decode_num_draft_tokens_total{model_name="m"} 6
vllm:spec_decode_num_accepted_tokens_total{model_name="m"} 4
vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="m",position="0"} 3
vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="m",position="1"} 1
"""
CHUNKS = (
    {"choices": [{"text": "a", "token_ids": [1]}]},
    {"choices": [{"text": "bc", "token_ids": [2, 3], "finish_reason": "length"}]},
    {
        "choices": [],
        "usage": {"prompt_tokens": 2},
        "metrics": {"speculative_decoding": {"per_step_accepted": [1], "per_step_drafted": [2]}},
    },
)


class Fake(BaseHTTPRequestHandler):
    """Answers `lives` requests and then fails in the way that `ending` says."""

    lives = 4
    ending = "cut"

    def do_GET(self) -> None:
        body = METRICS if self.path == "/metrics" else json.dumps({"data": [{"id": "m"}]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        type(self).lives -= 1
        self.send_response(200)
        self.end_headers()
        for chunk in CHUNKS[:1] if self.lives < 0 else CHUNKS:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        if self.lives < 0 and self.ending == "error":
            self.wfile.write(b'data: {"error": {"message": "EngineCore died"}}\n\n')

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Fake) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("ending", "words"), [("cut", "an answer ended without a reason"), ("error", "EngineCore died")]
)
def test_what_was_done_is_kept(url: str, monkeypatch: pytest.MonkeyPatch, ending: str, words: str) -> None:
    monkeypatch.setattr(Fake, "lives", 4)  # one of them warms up
    monkeypatch.setattr(Fake, "ending", ending)
    asked = [Question(i, str(i), prompt="x") for i in range(9)]
    result = measure(Remote(url), asked, Sampling(max_tokens=3), 1, workload(num_speculative_tokens=2))
    assert result.eagle.partial is not None
    assert "stopped answering" in result.eagle.partial
    assert words in result.eagle.partial
    assert result.completed == 3
    assert result.spec_decode_acceptance_length == 2
