"""Training text that the target writes itself: it asks the questions and answers them.

A head must predict what *this* target says, so its own answers are the right data, and a chat model
sampled behind its template's user header writes plausible user turns.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Shares of greedy and sampled answers: served traffic has both.
GREEDY_SHARE, TEMPERATURE = 0.7, 0.8
QUESTION_TOKENS, ANSWER_TOKENS = 160, 320
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Conversation:
    """One question with the target's answer, as token ids."""

    prompt: list[int]
    answer: list[int]


def write_conversations(target: str, folder: Path, shards: int, per_shard: int = 256) -> Iterator[dict[str, Any]]:
    """Let `target` write `shards` files of conversations into `folder`; yields figures of each.

    Shards that are there already are kept, so an interrupted run goes on where it stopped.
    """
    from vllm import LLM, SamplingParams, TokensPrompt

    folder.mkdir(parents=True, exist_ok=True)
    llm = LLM(target, dtype="bfloat16", max_model_len=1024, max_num_seqs=256, disable_log_stats=True)
    header, bridge, stop = _chat_frame(llm.get_tokenizer())
    seen: set[tuple[int, ...]] = set()
    for shard in range(shards):
        file = folder / f"shard{shard:04d}.jsonl"
        if file.exists():
            seen.update(tuple(c.prompt) for c in read_conversations([file]))
            continue
        torch.manual_seed(shard)
        asking = SamplingParams(temperature=0.9, max_tokens=QUESTION_TOKENS, stop_token_ids=[stop])
        asked = llm.generate([TokensPrompt(prompt_token_ids=header)] * per_shard, asking, use_tqdm=False)
        prompts = []
        for output in asked:
            tokens = [t for t in output.outputs[0].token_ids if t != stop]
            prompt = header + tokens + bridge
            if output.outputs[0].finish_reason == "stop" and len(tokens) > 3 and tuple(prompt) not in seen:
                seen.add(tuple(prompt))
                prompts.append(prompt)
        chance = random.Random(shard)
        answering = [
            SamplingParams(temperature=0.0 if chance.random() < GREEDY_SHARE else TEMPERATURE, max_tokens=ANSWER_TOKENS)
            for _ in prompts
        ]
        answered = llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], answering, use_tqdm=False)
        lines = [
            json.dumps({"prompt": p, "answer": list(o.outputs[0].token_ids)})
            for p, o in zip(prompts, answered, strict=True)
        ]
        partial = file.with_suffix(".partial")
        partial.write_text("\n".join(lines) + "\n")
        partial.rename(file)
        yield {
            "shard": shard,
            "conversations": len(lines),
            "answer_tokens": sum(len(o.outputs[0].token_ids) for o in answered),
        }


def read_conversations(files: list[Path]) -> list[Conversation]:
    """All conversations of shard files."""
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [Conversation(row["prompt"], row["answer"]) for row in rows]


def batches(conversations: list[Conversation], tokens: int, length: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches of about `tokens` tokens: ids [B, T] padded right, and which ids [B, T] are answers."""
    order = sorted(conversations, key=lambda c: len(c.prompt) + len(c.answer))
    groups: list[list[Conversation]] = [[]]
    for conversation in order:  # alike lengths together: little padding
        size = min(len(conversation.prompt) + len(conversation.answer), length)
        if groups[-1] and (len(groups[-1]) + 1) * size > tokens:
            groups.append([])
        groups[-1].append(conversation)
    random.Random(seed).shuffle(groups)
    for group in groups:
        rows = [(c.prompt + c.answer)[:length] for c in group]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        answers = torch.tensor(
            [[len(c.prompt) <= i < len(row) for i in range(width)] for c, row in zip(group, rows, strict=True)]
        )
        yield ids, answers


def token_counts(conversations: list[Conversation], vocab_size: int) -> Tensor:
    """How often each token [V] stands in answers."""
    return torch.bincount(torch.tensor([t for c in conversations for t in c.answer]), minlength=vocab_size)


def _chat_frame(tokenizer: Any) -> tuple[list[int], list[int], int]:
    """Tokens before a user turn, between it and the answer, and the one that ends a turn."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
    )
    before, after = text.split(_MARK)
    encode = lambda s: tokenizer(s, add_special_tokens=False)["input_ids"]  # noqa: E731
    return encode(before), encode(after), encode(after)[0]
