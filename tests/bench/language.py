"""A target and a head that agree on some transitions only, so that acceptance is known and neither 0 nor all.

The head (a projection head with its own lm_head) was solved for one language; the target speaks another one
with the same hidden states. What is accepted follows from the two maps alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..cases import CASES
from ..known_answer import Target, build_target, known_answer_head, save_head
from ..known_answer.target import VOCAB, cycle

K = 3


@dataclass(frozen=True)
class Language:
    """Where the models are, and what each of them says next."""

    target: Path
    head: Path
    spoken: tuple[int, ...]
    believed: tuple[int, ...]

    def answer(self, prompt: list[int], tokens: int) -> list[int]:
        """What the target says after `prompt`."""
        said = [self.spoken[prompt[-1]]]
        while len(said) < tokens:
            said.append(self.spoken[said[-1]])
        return said

    def accepted(self, prompt: list[int], tokens: int, k: int = K) -> list[int]:
        """Accepted drafts of each step, vLLM's way: before the limit of `tokens` trims the last one.

        The head sees the last verified token but one, and follows its own belief from there.
        """
        text = [prompt[-1], *self.answer(prompt, tokens + k + 1)]
        steps, known = [], 1  # tokens of the answer so far; the first comes from the prompt
        while known < tokens:
            token, right = self.believed[text[known - 1]], 0
            while right < k:
                token = self.believed[token]
                if token != text[known + 1 + right]:
                    break
                right += 1
            steps.append(right)
            known += right + 1
        return steps


def build_language(folder: Path, wrong: int = 5) -> Language:
    """Save target, head and tokenizer; the target differs from the head's belief at `wrong` tokens."""
    config = CASES["projection"]()
    believed = build_target(folder / "believed")
    save_head(known_answer_head(config, believed, K), folder / "head")
    spoken = cycle(VOCAB).clone()
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randperm(VOCAB, generator=generator)[:wrong]
    spoken[chosen] = spoken[chosen].roll(1)
    target = build_target(folder / "target", logits=20 * torch.eye(VOCAB)[spoken])
    _save_tokenizer(target)
    return Language(folder / "target", folder / "head", tuple(spoken.tolist()), tuple(believed.successor.tolist()))


def _save_tokenizer(target: Target) -> None:
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    fast.save_pretrained(target.folder)


def text(tokens: list[int]) -> str:
    """Tokens as the tokenizer writes them."""
    return " ".join(f"w{token}" for token in tokens)
