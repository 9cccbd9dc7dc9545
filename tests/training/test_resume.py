"""Stopping and going on leaves no trace in the weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from .conftest import SMALL

CHANGES = ["epochs=3", "evaluate_every=6", "feature_noise=0.1"]


def losses(output):
    rows = [json.loads(line) for line in (output / "run" / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if row["event"] == "step"]


def last_checkpoint(output):
    return sorted((output / "run").glob("step-*"))[-1]


def assert_same_run(one, other):
    """Weights, optimiser state, log and exported head, bit for bit."""
    assert losses(one) == losses(other)
    states = [load_file(last_checkpoint(folder) / "model.safetensors") for folder in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    moments = [torch.load(last_checkpoint(folder) / "optimizer.bin")["state"] for folder in (one, other)]
    assert all(torch.equal(moments[0][i][key], moments[1][i][key]) for i in moments[0] for key in moments[0][i])
    heads = [load_file(folder / "model.safetensors") for folder in (one, other)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """A run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole") / "head"
    assert world.train("eagle1", output, CHANGES, checkpoint_every=5).progress.step == 27
    return output


def test_a_run_in_many_sittings_is_the_same_run(world, whole, tmp_path):
    sittings = 0
    while not (done := world.train("eagle1", tmp_path / "head", CHANGES, checkpoint_every=5, minutes=1e-3)).finished:
        assert done.progress.step < 27
        sittings += 1
    assert sittings > 2
    assert_same_run(whole, tmp_path / "head")


def test_a_finished_run_is_left_as_it_is(world, whole):
    before = (whole / "model.safetensors").read_bytes(), (whole / "run" / "log.jsonl").read_bytes()
    assert world.train("eagle1", whole, CHANGES, checkpoint_every=5).finished
    assert before == ((whole / "model.safetensors").read_bytes(), (whole / "run" / "log.jsonl").read_bytes())


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on(blow, world, whole, tmp_path):
    """SIGKILL loses what came after the last checkpoint, SIGTERM nothing; both runs end the same."""
    output = tmp_path / "head"
    command = command_line("eagle1", world, output, CHANGES, "--checkpoint-every", "5", "-k", "4")
    log = output / "run" / "log.jsonl"
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and not (log.exists() and log.read_text().count('"event": "step"') > 6):
        time.sleep(0.02)
    assert running.poll() is None, running.communicate()
    os.kill(running.pid, blow)
    out, _ = running.communicate()
    assert running.returncode == (-signal.SIGKILL if blow == signal.SIGKILL else 0)
    assert not (output / "run" / "step-00000027").exists(), "it was to be stopped on the way"
    if blow == signal.SIGTERM:
        assert "Run the same command again" in out
    done = world.train("eagle1", output, CHANGES, checkpoint_every=5)
    assert done.finished
    assert_same_run(whole, output)


def test_bf16_from_the_command_line(world, tmp_path):
    """What users run: the default precision, one JSON object on stdout and nothing else."""
    command = command_line("feature", world, tmp_path / "head", ["precision=bf16", "epochs=3"], "-k", "4", "--json")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["finished"]
    assert result["best_acceptance"] > 4.5
    weights = torch.load(tmp_path / "head" / "head.pt")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def command_line(recipe, world, output, changes, *more):
    """`vllm-eagle train head` for a process of its own."""
    settings = [part for change in [*SMALL, *changes] for part in ("--set", change)]
    paths = ["--target", str(world.target.folder), "--data", str(world.data), "-o", str(output)]
    return [
        sys.executable,
        "-m",
        "vllm_eagle_plugin.cli",
        "train",
        "head",
        "--recipe",
        recipe,
        *paths,
        *settings,
        *more,
    ]
