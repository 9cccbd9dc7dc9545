"""Every shape of prompts is read, and what is none of them is refused with its place."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from vllm_eagle_plugin.benchmarks.prompts import fingerprint, first_turns, read_prompts

from vllm_eagle_plugin.errors import HeadError, UsageError


def write(folder: Path, *lines: object, name: str = "prompts.jsonl") -> str:
    file = folder / name
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(file)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def test_shapes(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        {"prompt": "Once"},
        {"question_id": 81, "category": "math", "turns": ["one", "two"], "reference": ["x"]},
        {"messages": [{"role": "system", "content": "be brief"}, user("hi"), {"role": "assistant", "content": "no"}]},
        "",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]},
        {"prompt_token_ids": [1, 2, 3], "id": "x"},
    )  # fmt: skip
    plain, turns, messages, shared, ids = read_prompts(source)
    assert plain.prompt == "Once"
    assert (turns.id, turns.category, turns.messages, turns.later) == ("81", "math", (user("one"),), ("two",))
    assert messages.messages[-1] == user("hi")
    assert messages.later == ()
    assert (shared.messages, shared.later) == ((user("a"),), ("c",))
    assert (ids.id, ids.token_ids) == ("x", (1, 2, 3))
    assert [q.index for q in read_prompts(source)] == [0, 1, 2, 3, 4]
    assert len(read_prompts(source, limit=2)) == 2
    assert first_turns([turns])[0].turns == 1


def test_files(tmp_path: Path) -> None:
    texts = read_prompts(write(tmp_path, "first", "", "second", name="p.txt"))
    assert [q.prompt for q in texts] == ["first", "second"]
    listed = tmp_path / "sharegpt.json"
    listed.write_text(json.dumps([{"id": "a", "conversations": [{"from": "human", "value": "hello"}]}], indent=1))
    assert read_prompts(str(listed))[0].messages == (user("hello"),)


def test_builtin_questions() -> None:
    questions = read_prompts("builtin")
    assert Counter(q.category for q in questions).most_common() == [
        (c, 10)
        for c in (
            "writing", "explanation", "coding", "mathematics",
            "reasoning", "extraction", "summarising", "conversation",
        )
    ]  # fmt: skip
    texts = [m["content"] for q in questions for m in q.messages] + [t for q in questions for t in q.later]
    assert len(set(texts)) == 160


def test_fingerprint_is_of_what_is_asked(tmp_path: Path) -> None:
    one = read_prompts(write(tmp_path, {"prompt": "a", "category": "x"}))
    same = read_prompts(write(tmp_path, {"prompt": "a"}, name="b.jsonl"))
    other = read_prompts(write(tmp_path, {"prompt": "b"}, name="c.jsonl"))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "has no prompts"),
        (["", "  "], "has no prompts"),
        (['{"prompt": "a"}', "{oops"], r"prompts.jsonl:2 is not JSON"),
        ([{"prompt": ""}], r"prompts.jsonl:1: an object with prompt in it, or an empty prompt"),
        ([{"text": "a"}], "an object with text"),
        ([["a"]], "entry 0: a str"),
        ([{"turns": []}], "object with turns"),
        ([{"turns": ["a", 3]}], "object with turns"),
        ([{"messages": [{"role": "user"}]}], "without"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}], "nobody but the assistant"),
        ([{"conversations": [{"from": "gpt", "value": "a"}]}], "no human"),
        ([{"prompt_token_ids": [1, -2]}], "prompt_token_ids"),
        (["3"], "a int"),
    ],
)
def test_bad_files(tmp_path: Path, lines: list, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        read_prompts(write(tmp_path, *lines))
    assert "one JSON object a line" in str(refused.value)


def test_binary_and_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "p.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        read_prompts(str(binary))
    for missing in ("nowhere.jsonl", "./a/b", "a/b/c", str(tmp_path)):
        with pytest.raises(UsageError, match="no prompt file"):
            read_prompts(missing)
    from huggingface_hub import HfApi

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "list_repo_files", unreachable)
    with pytest.raises(HeadError, match="owner/data could not be had from the hub: no route"):
        read_prompts("owner/data")
