"""`vllm-eagle serve` up to the moment when it becomes vLLM's server; no engine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vllm_eagle_plugin import launch
from vllm_eagle_plugin.errors import UsageError
from vllm_eagle_plugin.servers import machine_settings

from .known_answer import build_target
from .shell import Shell

#: Says how it was called, and waits for the signal that ends it.
VLLM = """#!{python}
import json, os, signal, sys, time
print(json.dumps([sys.argv[1:], os.environ.get("VLLM_CPU_KVCACHE_SPACE")]), flush=True)
time.sleep(60)
"""


@pytest.fixture
def shell(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Shell(tmp_path, build_target(tmp_path / "target"), monkeypatch, capfd)


@pytest.fixture
def head(shell):
    return shell.head("safeailab-eagle").save(shell.folder / "head")


def printed(shell: Shell, head: Path, *options: str) -> list[str]:
    """The command that is printed, as words from `vllm` on."""
    code, out, err = shell.run("serve", shell.target.folder, "--head", head, "--no-verify", "--print", *options)
    assert code == 0, err
    words = shlex.split(out)
    return words[words.index("vllm") :]


def option(words: list[str], name: str) -> dict:
    return json.loads(words[words.index(name) + 1])


def test_a_head_as_trained_is_converted_once(shell, head):
    first = printed(shell, head)
    assert first[:3] == ["vllm", "serve", str(shell.target.folder)]
    speculative = option(first, "--speculative-config")
    assert (Path(speculative["model"]) / "model.safetensors").is_file()
    assert speculative["num_speculative_tokens"] == launch.CHAIN
    before = (Path(speculative["model"]) / "config.json").stat().st_mtime_ns
    assert printed(shell, head) == first
    assert (Path(speculative["model"]) / "config.json").stat().st_mtime_ns == before, "converted twice"
    assert printed(shell, head, "--rope-theta", "5000") != first, "other options, the same head"


def test_a_converted_head_is_served_where_it_is(shell, head):
    shell.convert(head)
    assert option(printed(shell, shell.output), "--speculative-config")["model"] == str(shell.output)
    assert not (shell.folder / "cache").exists()


def test_a_changed_head_is_another(shell, head):
    first = printed(shell, head)
    other = shell.head("safeailab-eagle")
    next(iter(other.tensors.values())).add_(1.0)
    assert printed(shell, other.save(shell.folder / "head2")) != first


def test_trees_adaptive_length_and_what_is_passed_on(shell, head):
    words = printed(
        shell, head, "--tree", "auto", "-k", "9", "--adaptive", "--port", "8001",
        "--additional-config", '{"mine": 1}', "--max-model-len=512",
    )  # fmt: skip
    assert option(words, "--speculative-config")["num_speculative_tokens"] == 9
    assert option(words, "--additional-config") == {"mine": 1, "eagle": {"tree": "auto", "adaptive": True}}
    assert words[-3:] == ["--port", "8001", "--max-model-len=512"]
    spec = printed(shell, head, "--tree", '{"kind": "dynamic", "depth": 4}')
    assert option(spec, "--additional-config")["eagle"]["tree"] == {"kind": "dynamic", "depth": 4}
    assert option(spec, "--speculative-config")["num_speculative_tokens"] == launch.NODES


def test_yaml_is_what_vllm_reads(shell, head, tmp_path):
    code, out, err = shell.run(
        "serve", shell.target.folder, "--head", head, "--no-verify", "--yaml", "--port", "8001", "--enforce-eager"
    )
    assert code == 0, err
    content = yaml.safe_load(out)
    assert content["model"] == str(shell.target.folder)
    assert content["port"] == "8001"
    assert content["enforce-eager"] is True
    assert content["speculative-config"]["num_speculative_tokens"] == launch.CHAIN


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--speculative-config", "{}"), "--speculative-config was passed on"),
        (("--tree", "{no"), "--tree is {no"),
        (("--tree", "auto", "--additional-config", "[]"), "--additional-config is []"),
    ],
)
def test_what_contradicts_itself_is_refused(shell, head, options, what):
    code, out, err = shell.run("serve", shell.target.folder, "--head", head, "--no-verify", "--print", *options)
    assert (code, out) == (2, "")
    assert f"error: {what}" in err


def test_a_bad_head_leaves_nothing_in_the_cache(shell):
    bad = shell.head("safeailab-eagle")
    bad.tensors.popitem()
    code, out, err = shell.run("serve", shell.target.folder, "--head", bad.save(shell.folder / "bad"), "--print")
    assert (code, out) == (1, "")
    assert "error: " in err
    assert not [p for p in (shell.folder / "cache").rglob("*") if p.is_file()]


def test_settings_of_this_machine(monkeypatch):
    monkeypatch.setattr("vllm_eagle_plugin.servers.vllm_distribution", lambda: ("vllm", "0.32.0"))
    assert machine_settings() == {}
    monkeypatch.setattr("vllm_eagle_plugin.servers.vllm_distribution", lambda: ("vllm-cpu", "0.32.0"))
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    assert int(machine_settings()["VLLM_CPU_KVCACHE_SPACE"]) >= 1
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    assert "VLLM_CPU_KVCACHE_SPACE" not in machine_settings()


def test_it_becomes_the_server_and_ends_with_it(shell, head, tmp_path, monkeypatch):
    vllm = tmp_path / "bin" / "vllm"
    vllm.parent.mkdir()
    vllm.write_text(VLLM.format(python=sys.executable))
    vllm.chmod(0o755)
    script = (
        "import sys; import vllm_eagle_plugin.launch as launch, vllm_eagle_plugin.cli as cli;"
        f"launch.vllm_command = lambda: {str(vllm)!r}; cli.main()"
    )
    arguments = ["serve", str(shell.target.folder), "--head", str(head), "--no-verify", "--port", "9"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        called, space = json.loads(process.stdout.readline())
        assert called[:2] == ["serve", str(shell.target.folder)]
        assert called[-2:] == ["--port", "9"]
        assert space == os.environ.get("VLLM_CPU_KVCACHE_SPACE") or int(space) >= 1
        process.terminate()
        process.wait(20)
    finally:
        process.kill()


def test_options_that_hold_other_options_values():
    with pytest.raises(UsageError, match="stands by itself"):
        _ = launch.Launch("t", {}, ("word",)).yaml
    assert yaml.safe_load(launch.Launch("t", {}, ("--a", "1", "2", "--b=3", "-c")).yaml) == {
        "model": "t", "a": ["1", "2"], "b": "3", "c": True,
    }  # fmt: skip
