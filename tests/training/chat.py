"""A chat model of 24 words: random, so that what it writes differs from sample to sample."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from ..known_answer import build_target
from ..known_answer.target import VOCAB

USER, END, ANSWER = 20, 21, 22
_TEMPLATE = "{% for m in messages %}w20 {{ m['content'] }} w21 {% endfor %}{% if add_generation_prompt %}w22{% endif %}"


def write_chat_model(folder: Path, seed: int = 0) -> Path:
    """A target with a tokenizer and a chat template; about one token in eight ends a turn."""
    logits = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed))
    logits[:, END] += 1
    logits[USER, END] = -20  # a turn says something
    build_target(folder, logits=logits, seed=seed)
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(folder)
    return folder
