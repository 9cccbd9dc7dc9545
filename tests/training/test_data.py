"""Conversations that a target writes: from itself, from files, through vLLM and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_eagle_plugin.training.corpus import read_shard, shard_files
from vllm_eagle_plugin.training.data import DataSettings, DataWriter

from vllm_eagle_plugin.errors import HeadError, UsageError
from vllm_eagle_plugin.targets.prompts import ChatFrame, first_turn

from .chat import ANSWER, END, USER, write_chat_model

FEW = {"question_tokens": 24, "answer_tokens": 24, "per_shard": 16}


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat"))


def write(chat, folder, tokens, backend="plain", **settings):
    writer = DataWriter(str(chat), folder, DataSettings(**{**FEW, **settings}), backend, 8, "fp32")
    return list(writer.write(tokens))


def rows(folder):
    return [c for file in shard_files(folder) for c in read_shard(file)]


def test_the_frame_around_a_turn(chat):
    assert ChatFrame.of(AutoTokenizer.from_pretrained(chat)) == ChatFrame([USER], [END, ANSWER], [END])


def test_a_target_writes_both_sides(chat, tmp_path):
    shards = write(chat, tmp_path / "data", 400)
    assert shards[-1].total_tokens >= 400 > shards[-2].total_tokens
    found = rows(tmp_path / "data")
    assert sum(len(c.answer) for c in found) == shards[-1].total_tokens
    prompts = [tuple(c.prompt.tolist()) for c in found]
    assert len(set(prompts)) == len(prompts), "no prompt twice"
    assert all(p[0] == USER and p[-2:] == (END, ANSWER) and END not in p[1:-2] for p in prompts)
    assert all(len(c.answer) == 24 or c.answer[-1] == END for c in found)
    assert all(END not in c.answer[:-1] for c in found)
    assert {c.temperature for c in found} == {0.0, 0.8}
    share = sum(c.temperature == 0 for c in found) / len(found)
    assert 0.4 < share < 0.95


def test_greedy_answers_are_the_targets_own(chat, tmp_path):
    """Each token is the argmax of a forward pass over all before it: no batch, no padding, no cache."""
    write(chat, tmp_path / "data", 200)
    model = AutoModelForCausalLM.from_pretrained(chat)
    greedy = [c for c in rows(tmp_path / "data") if c.temperature == 0]
    sampled = [c for c in rows(tmp_path / "data") if c.temperature]
    assert greedy
    with torch.inference_mode():
        for conversation in greedy:
            ids = torch.from_numpy(conversation.ids(999)).long()[None]
            said = model(ids).logits[0].argmax(-1)[len(conversation.prompt) - 1 : -1]
            assert said.tolist() == conversation.answer.tolist()
    assert sampled, "and the others are not all so"


def test_an_interrupted_run_goes_on_to_the_same_files(chat, tmp_path):
    write(chat, tmp_path / "whole", 500)
    write(chat, tmp_path / "parts", 150)
    (tmp_path / "parts" / ".shard0099.jsonl.partial").write_text("cut off")
    done = write(chat, tmp_path / "parts", 500)
    assert any(shard.found for shard in done)
    assert [f.read_bytes() for f in shard_files(tmp_path / "whole")] == [
        f.read_bytes() for f in shard_files(tmp_path / "parts")
    ]


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.txt"])
def test_prompts_from_a_file(name, chat, tmp_path):
    turns = [f"w{i % 20} w{i // 20}" for i in range(40)]
    lines = [
        turn if name.endswith("txt") else json.dumps([{"prompt": turn}, {"turns": [turn, "w1"]}][i % 2])
        for i, turn in enumerate(turns)
    ]
    (tmp_path / name).write_text("\n".join([*lines, lines[0], ""]))
    shards = write(chat, tmp_path / "data", 10**6, prompts=str(tmp_path / name))
    assert [shard.conversations for shard in shards] == [16, 16, 8], "each prompt once, then the end"
    assert [c.prompt.tolist() for c in rows(tmp_path / "data")] == [
        [USER, i % 20, i // 20, END, ANSWER] for i in range(40)
    ]


@pytest.mark.engine
def test_a_job_that_is_ended_leaves_no_engine_behind(chat, tmp_path):
    """SIGTERM, as a scheduler sends it: whole shards stay, and vLLM's processes go too."""
    data = tmp_path / "data"
    command = [sys.executable, "-m", "vllm_eagle_plugin.cli", "train", "data", "--target", str(chat), "-o", str(data)]
    options = [
        "--backend",
        "vllm",
        "--tokens",
        "90000",
        "--answer-tokens",
        "24",
        "--per-shard",
        "8",
        "--precision",
        "fp32",
    ]
    said, env = tmp_path / "said.txt", {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with said.open("w") as file, subprocess.Popen([*command, *options], stdout=file, stderr=file, env=env) as running:
        while running.poll() is None and len(shard_files(data)) < 2:
            time.sleep(0.05)
        others = psutil.Process(running.pid).children(recursive=True)
        running.terminate()
    assert others
    assert not psutil.wait_procs(others, timeout=30)[1], "engines should not be left behind"
    assert running.returncode == 130
    assert "Traceback" not in said.read_text()
    assert [c for file in shard_files(data) for c in read_shard(file)]


@pytest.mark.engine
def test_vllm_writes_what_plain_generation_does(chat, tmp_path):
    """The command line as a user has it, in a process of its own. Greedy, where there is one right answer."""
    (tmp_path / "prompts.txt").write_text("\n".join(f"w{i} w{i + 1}" for i in range(12)))
    for backend in ("vllm", "plain"):
        options = ["--backend", backend, "--tokens", "5000", "--greedy-share", "1", "--answer-tokens", "24"]
        paths = ["--target", str(chat), "-o", str(tmp_path / backend), "--prompts", str(tmp_path / "prompts.txt")]
        command = [sys.executable, "-m", "vllm_eagle_plugin.cli", "train", "data", *paths, *options]
        done = subprocess.run([*command, "--precision", "fp32", "--json"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["shards"] == 1
    one, other = (rows(tmp_path / backend) for backend in ("vllm", "plain"))
    assert len(one) == 12
    assert [c.answer.tolist() for c in one] == [c.answer.tolist() for c in other]


def test_another_target_may_not_add_to_it(chat, tmp_path):
    write(chat, tmp_path / "data", 50)
    other = write_chat_model(tmp_path / "other", seed=1)
    with pytest.raises(HeadError, match="whose weights are not those of 'other'"):
        write(other, tmp_path / "data", 500)
    with pytest.raises(UsageError, match=r"other settings \(greedy_share\)"):
        write(chat, tmp_path / "data", 500, greedy_share=0.1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompts": "a", "dataset": "b"}, "were both given"),
        ({"greedy_share": 1.5}, "--greedy-share is 1.5"),
        ({"temperature": 0.0}, "--temperature is 0.0"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(UsageError, match=said):
        DataSettings(**settings)


@pytest.mark.parametrize(
    ("line", "said"), [("{", "line 2 of .* is no JSON"), ('{"id": 1}', "holds no user turn"), ("[1]", "no user turn")]
)
def test_bad_prompt_files(line, said, chat, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "w1"}) + "\n" + line)
    with pytest.raises(HeadError, match=said):
        write(chat, tmp_path / "data", 50, prompts=str(file))
    assert not shard_files(tmp_path / "data")


def test_a_target_that_cannot_ask(targets, tmp_path):
    """It has no chat template, or says the same thing each time."""
    with pytest.raises(HeadError, match=r"no usable (tokenizer|chat template)"):
        write(targets("llama").folder, tmp_path / "data", 50)
    mute = write_chat_model(tmp_path / "mute")
    with pytest.raises(HeadError, match="wrote no new user turn"):
        write(mute, tmp_path / "mute-data", 10**6, per_shard=2, question_tokens=1)


@pytest.mark.parametrize(
    ("row", "turn"),
    [
        ({"prompt": " hello "}, "hello"),
        ({"turns": ["hello", "again"]}, "hello"),
        ({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "hello"}]}, "hello"),
        ({"conversations": [{"from": "human", "value": "hello"}]}, "hello"),
        ({"instruction": "hello", "input": "world"}, "hello\n\nworld"),
        ({"question": "", "text": "hello"}, "hello"),
        ({"answer": "hello"}, None),
        ({"messages": [{"role": "assistant", "content": "hello"}]}, None),
    ],
)
def test_user_turns_in_rows_of_any_form(row, turn):
    assert first_turn(row) == turn


def test_a_dataset_needs_its_package(chat, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="pip install datasets"):
        write(chat, tmp_path / "data", 50, dataset="some/name")
