"""Killed in the middle: the output is absent, or whole."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import torch
from safetensors.torch import load_file

from ..known_answer.target import VOCAB, WIDTH
from ..plain_heads import MAKERS

MOMENTS = 50
#: Starts up once, and then forks a child for each conversion, told on stdin where to write to.
PROGRAM = """
import os, sys
from pathlib import Path
from vllm_eagle_plugin.conversion import convert
from vllm_eagle_plugin.targets.target import read_target
import vllm_eagle_plugin.conversion.converter, torch
torch.set_num_threads(1)
head, target = sys.argv[1:]
read_target(target)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        convert(head, target, Path(line.strip()))
        print("done", flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("ended", status, flush=True)
"""


def test_kill_at_any_moment(targets, tmp_path):
    """SIGKILL at moments spread over a whole conversion, many of them while the file is written."""
    head = MAKERS["safeailab-eagle"]()
    head.tensors["embed_tokens.weight"] = targets().embedding + 0.1 * torch.randn(VOCAB, WIDTH)
    head.tensors["lm_head.weight"] = torch.randn(VOCAB, WIDTH)
    for i in range(1, 40):  # large enough for a kill to fall into the writing
        head.tensors |= {
            n.replace("layers.0", f"layers.{i}"): t.clone()
            for n, t in head.tensors.items()
            if n.startswith("layers.0.")
        }
        head.tensors[f"layers.{i}.input_layernorm.weight"] = torch.ones(WIDTH)
    head.save(tmp_path / "head")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "head"), str(targets().folder)]
    chance, killed, whole = random.Random(0), 0, 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(output, seconds=None):
            server.stdin.write(f"{output}\n")
            server.stdin.flush()
            child = int(server.stdout.readline())
            started = time.monotonic()
            if seconds is not None:
                time.sleep(seconds)
                subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(child)], check=False, capture_output=True)
            line = server.stdout.readline()
            if line == "done\n":
                line = server.stdout.readline()
            assert line.startswith("ended"), line
            return time.monotonic() - started, line.split()[1] == "0"

        taken, done = run(tmp_path / "first")
        assert done
        expected = load_file(tmp_path / "first" / "model.safetensors")
        for moment in range(MOMENTS):
            output = tmp_path / "outputs" / str(moment)
            _, finished = run(output, chance.uniform(0, 1.1 * taken))
            killed += not finished
            if output.exists():
                whole += 1
                assert sorted(f.name for f in output.iterdir()) == ["config.json", "model.safetensors"]
                written = load_file(output / "model.safetensors")
                assert written.keys() == expected.keys()
                assert all(torch.equal(written[n], t) for n, t in expected.items())
            else:
                assert not finished
        server.stdin.close()
    assert killed >= MOMENTS // 4, f"only {killed} of {MOMENTS} kills came in time"
