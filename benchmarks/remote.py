"""A running server as a session: requests over its OpenAI-compatible interface, counters from /metrics."""

from __future__ import annotations

import itertools
import json
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

import httpx

from ..errors import HeadError
from ..servers import Server
from .answer import Answer
from .prompts import Question
from .records import Record
from .session import Counters, Done, Sampling, Step, conversations

PREFIX = "vllm:spec_decode_num_"
DETAILED_FLAG = "--per-request-spec-decode-metrics detailed"


def scrape(url: str) -> dict[str, float]:
    """The server's counters, summed over labels; per-position ones under `name[position]`.

    Raises:
        HeadError: nobody answers there, or not with metrics.
    """
    try:
        metrics = Server(url.rstrip("/")).metrics()
    except (OSError, ValueError, IndexError) as error:
        raise HeadError(
            f"{url}/metrics cannot be read: {error}", "A running vLLM server was expected", "Check the address"
        ) from None
    if not any(name.startswith("vllm:") for name in metrics):
        raise HeadError(f"{url}/metrics has no vLLM metrics", "A vLLM server was expected", "Check the address")
    return metrics


def speculative_counters(metrics: dict[str, float]) -> Counters | None:
    """vLLM's speculative counters among all its metrics; None where it does not speculate."""
    if PREFIX + "drafts_total" not in metrics:
        return None
    positions = itertools.takewhile(
        lambda name: name in metrics, (f"{PREFIX}accepted_tokens_per_pos_total[{i}]" for i in itertools.count())
    )
    return Counters(
        int(metrics[PREFIX + "drafts_total"]),
        int(metrics[PREFIX + "draft_tokens_total"]),
        int(metrics[PREFIX + "accepted_tokens_total"]),
        tuple(int(metrics[name]) for name in positions),
    )


class Remote:
    """A session on a server that is already up.

    A server that does not report acceptance per request gives totals only.

    Raises:
        HeadError: no vLLM server there, or one that does not speculate.
    """

    def __init__(self, url: str, model: str | None = None) -> None:
        self.url = url.rstrip("/")
        counters = speculative_counters(scrape(self.url))
        if counters is None:
            raise HeadError(
                f"the server at {url} does not speculate",
                "Its /metrics have no vllm:spec_decode_* counters",
                "Start it with --speculative-config",
            )
        self.k = len(counters.per_position)
        self.model = model or self._model()
        self._stopping = threading.Event()

    def _model(self) -> str:
        try:
            answer = httpx.get(self.url + "/v1/models", timeout=30)
            answer.raise_for_status()
            return answer.json()["data"][0]["id"]
        except (httpx.HTTPError, LookupError, ValueError) as error:
            raise HeadError(f"{self.url}/v1/models cannot be read: {error}") from None

    def run(self, questions: Sequence[Question], sampling: Sampling, concurrency: int, done: Done) -> list[str]:
        waiting, refused, lock = deque(conversations(questions, sampling)), list[str](), threading.Lock()
        self._stopping.clear()

        def client() -> None:
            with httpx.Client(base_url=self.url, timeout=httpx.Timeout(600, connect=10)) as http:
                while not self._stopping.is_set():
                    with lock:
                        if not waiting:
                            return
                        question, seed = waiting.popleft()
                    messages = list(question.messages)
                    for turn in range(question.turns):
                        answer = self._ask(http, question, messages, seed, turn, sampling)
                        with lock:
                            if isinstance(answer, str):
                                refused.append(answer)
                                break
                            done(answer)
                        if turn < len(question.later):
                            said = {"role": "assistant", "content": answer.text}
                            messages = [*messages, said, {"role": "user", "content": question.later[turn]}]

        with ThreadPoolExecutor(concurrency) as pool:
            futures = [pool.submit(client) for _ in range(concurrency)]
            try:
                finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
            except httpx.HTTPError as error:
                raise HeadError(
                    f"the server at {self.url} stopped answering: {error or type(error).__name__}"
                ) from None
            finally:
                self._stopping.set()
        return refused

    def _ask(
        self,
        http: httpx.Client,
        question: Question,
        messages: list[dict[str, Any]],
        seed: int | None,
        turn: int,
        sampling: Sampling,
    ) -> Record | str:
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "ignore_eos": sampling.ignore_eos,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        path = "/v1/chat/completions" if messages else "/v1/completions"
        asked = {"messages": messages} if messages else {"prompt": question.prompt or list(question.token_ids or ())}
        stream = _Stream(question, seed, turn, messages)
        with http.stream("POST", path, json={**body, **asked}) as response:
            if response.status_code != 200:
                return f"{path} answered {response.status_code}: {response.read().decode(errors='replace')[:300]}"
            for line in response.iter_lines():
                if self._stopping.is_set():
                    return "given up, because another request failed"
                if line.startswith("data: {"):
                    stream.take(json.loads(line.removeprefix("data: ")))
        return stream.whole()

    def counters(self) -> Counters | None:
        return speculative_counters(scrape(self.url))

    def take_steps(self) -> list[Step]:
        return []

    def describe(self) -> dict[str, Any]:
        return {"method": "as the server was started", "url": self.url, "model": self.model}


class _Stream(Answer):
    """One streamed answer."""

    speculative: dict[str, Any] | None = None

    def take(self, chunk: dict[str, Any]) -> None:
        """One chunk of the stream.

        Raises:
            httpx.RemoteProtocolError: the server reports an error.
        """
        if "error" in chunk:
            raise httpx.RemoteProtocolError(str(chunk["error"])[:300])
        for choice in chunk.get("choices", ()):
            text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
            self.add(choice.get("token_ids") or [], text)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        usage = chunk.get("usage") or {}
        self.prompt_tokens = usage.get("prompt_tokens", self.prompt_tokens)
        self.speculative = (chunk.get("metrics") or {}).get("speculative_decoding") or self.speculative

    def whole(self) -> Record:
        """The answer.

        Raises:
            httpx.RemoteProtocolError: it ended in the middle.
        """
        if self.finish_reason is None:
            raise httpx.RemoteProtocolError("an answer ended without a reason")
        accepted = (self.speculative or {}).get("per_step_accepted", [])
        drafted = (self.speculative or {}).get("per_step_drafted", [])
        trimmed = self._trimmed(accepted)
        return self.record(
            accepted, drafted, None if trimmed is None else len(self.pieces) - 1 - len(accepted), trimmed
        )

    def _trimmed(self, accepted: list[int]) -> int | None:
        """What was counted and not emitted, if the chunks of the stream are the steps of the engine."""
        plain = len(self.pieces) - 1 - len(accepted)
        if not accepted or plain < 0:
            return None
        if plain == 0 and [a + 1 for a in accepted[:-1]] != self.pieces[1:-1]:
            return None
        trimmed = sum(accepted) + len(accepted) + plain - sum(self.pieces[1:])
        return trimmed if 0 <= trimmed <= accepted[-1] else None
