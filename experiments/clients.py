"""Requests in token ids to a `vllm serve` of ours, some of which hang up in the middle."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from vllm_eagle_plugin.benchmarks.live import RUNNING, WAITING

from vllm_eagle_plugin.errors import HeadError
from vllm_eagle_plugin.servers import Server

PATH = "/v1/completions"
HangsUp = Literal["never", "before a chunk", "after a chunk"]


@dataclass(frozen=True)
class Request:
    """One request, and when its client hangs up: never, before the first chunk, or after it.

    `settings` are fields of the OpenAI-compatible interface, such as `temperature`.
    """

    prompt: list[int]
    max_tokens: int
    settings: dict[str, Any] = field(default_factory=dict)
    hangs_up: HangsUp = "never"


@dataclass(frozen=True)
class Clients:
    """Asks `server`, which serves the model of that name."""

    server: Server
    model: str

    def run(self, request: Request) -> dict[str, Any] | None:
        """The answer, or None where the client hung up."""
        if request.hangs_up == "never":
            return self.complete(request)
        self.hang_up(request)
        return None

    def complete(self, request: Request) -> dict[str, Any]:
        """The server's `choices[0]`; its tokens are under `token_ids`.

        Raises:
            HeadError: the server refused.
        """
        return self.server.post(PATH, self._body(request))["choices"][0]

    def hang_up(self, request: Request) -> None:
        """Start a stream and close the connection; the server learns of it only by that.

        Raises:
            HeadError: the server refused, or was done before anybody could hang up.
        """
        connection = http.client.HTTPConnection(urlsplit(self.server.url).netloc, timeout=600)
        body = json.dumps({**self._body(request), "stream": True})
        connection.request("POST", PATH, body, {"Content-Type": "application/json"})
        if request.hangs_up == "after a chunk":
            stream = connection.getresponse()
            first = stream.readline()
            stream.close()
            if stream.status != 200 or not first.startswith(b"data: {") or b'"choices"' not in first:
                raise HeadError(f"{PATH} answered {stream.status} to a stream: {first.decode(errors='replace')[:300]}")
        connection.close()

    def unfinished(self) -> float:
        """Requests that run or wait."""
        found = self.server.metrics()
        return found[RUNNING] + found[WAITING]

    def wait_until_idle(self, seconds: float = 20) -> None:
        """Return once nothing runs or waits any more.

        Raises:
            HeadError: something still does.
        """
        deadline = time.monotonic() + seconds
        while left := self.unfinished():
            if time.monotonic() > deadline:
                raise HeadError(f"{left:.0f} requests are left {seconds:.0f} s after the last client went")
            time.sleep(0.3)

    def _body(self, request: Request) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "return_token_ids": True,
            **request.settings,
        }
