"""The same command under `accelerate launch` with two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .test_resume import command_line, last_checkpoint, losses

CHANGES = ["epochs=2", "feature_noise=0.1"]


def launch(arguments, port):
    """Two processes on CPU, as `accelerate launch` starts them."""
    module = arguments[arguments.index("-m") + 1 :]
    # torchrun's way, on processors: what `--cpu` does without MPI is to start one process.
    how = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", *how, "--main_process_port", str(port)]
    return subprocess.Popen(
        [*accelerate, "--dynamo_backend", "no", "-m", *module],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )


def test_two_processes_compute_what_one_does(world, tmp_path):
    world.train("eagle1", tmp_path / "one", CHANGES)
    running = launch(command_line("eagle1", world, tmp_path / "two", CHANGES, "-k", "4"), 29611)
    out, _ = running.communicate(timeout=300)
    assert running.returncode == 0, out
    assert [processes(tmp_path / name) for name in ("one", "two")] == [1, 2]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 18
    assert [step for step, _ in one] == [step for step, _ in two]
    # fp32 sums in another order, 18 steps of it
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=1e-3)
    assert (tmp_path / "two" / "model.safetensors").exists()
    assert one[0][1] > 2 * one[-1][1], "it must have learned for the curves to mean something"


def test_a_killed_worker_costs_nothing_but_time(world, tmp_path):
    changes = ["epochs=40", "feature_noise=0.1"]
    command = command_line("eagle1", world, tmp_path / "head", changes, "--checkpoint-every", "4")
    log = tmp_path / "head" / "run" / "log.jsonl"
    running = launch(command, 29612)
    while running.poll() is None and not (log.exists() and log.read_text().count('"event": "step"') > 8):
        time.sleep(0.05)
    assert running.poll() is None, running.communicate()[0]
    worker = second_worker(tmp_path / "head")
    os.kill(worker, signal.SIGKILL)
    out, _ = running.communicate(timeout=300)
    assert running.returncode != 0
    assert "error: another worker of this run stopped at step" in out
    assert "Run the same command again to go on from there" in out
    saved = int(last_checkpoint(tmp_path / "head").name.removeprefix("step-"))
    assert saved >= 4
    done = world.train("eagle1", tmp_path / "head", changes, checkpoint_every=4, minutes=1e-3)
    assert done.progress.step > saved


def processes(output: Path) -> int:
    """How many processes the run says it had."""
    return json.loads((output / "run" / "log.jsonl").read_text().splitlines()[0])["processes"]


def second_worker(output: Path) -> int:
    """The process of rank 1 that trains into `output`."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((process / name).read_text() for name in ("cmdline", "environ"))
        except OSError:  # gone, or not ours
            continue
        if str(output) in command and "LOCAL_RANK=1" in environment.split("\0"):
            return int(process.name)
    raise AssertionError("there is no second worker")
