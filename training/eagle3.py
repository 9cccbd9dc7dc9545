"""The EAGLE-3 recipe: three layers of the target fused, one decoder layer, a reduced draft vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ..configs import Eagle3Config
from ..reference import ReferenceHead, build_reference
from .data import Conversation, read_conversations, token_counts
from .export import export_eagle3
from .trainer import Schedule, Teacher, train


def train_eagle3(
    target: str, data: Path, output: Path, draft_vocab: int, schedule: Schedule, seed: int = 0
) -> ReferenceHead:
    """Train on the conversations in `data` and write the head, and its log, to `output`."""
    torch.manual_seed(seed)
    conversations = read_conversations(sorted(data.glob("shard*.jsonl")))
    head, teacher = new_eagle3(target, conversations, draft_vocab)
    output.mkdir(parents=True, exist_ok=True)
    with (output / "log.jsonl").open("w") as log:

        def report(row: dict[str, Any]) -> None:
            print(json.dumps(row), file=log, flush=True)

        train(head, teacher, conversations, schedule, report, lambda: export_eagle3(head, output))
    return head


def new_eagle3(target: str, conversations: list[Conversation], draft_vocab: int) -> tuple[ReferenceHead, Teacher]:
    """An untrained head for `target` and its teacher. The lm_head starts as the target's rows."""
    described = AutoConfig.from_pretrained(target)
    layers = described.num_hidden_layers
    config = Eagle3Config(
        vocab_size=described.vocab_size,
        draft_vocab_size=draft_vocab,
        hidden_size=described.hidden_size,
        intermediate_size=described.intermediate_size,
        num_attention_heads=described.num_attention_heads,
        num_key_value_heads=described.num_key_value_heads,
        rms_norm_eps=described.rms_norm_eps,
        max_position_embeddings=described.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        eagle_aux_hidden_state_layer_ids=[2, layers // 2, layers - 3],
        own_lm_head=True,
    )
    head, teacher = build_reference(config), Teacher(target, config)
    frequent = token_counts(conversations, config.vocab_size).topk(draft_vocab).indices.sort().values
    assert head.d2t is not None  # a reduced vocabulary has one
    with torch.no_grad():
        head.d2t.copy_(frequent - torch.arange(draft_vocab))
        head.lm_head.weight.copy_(teacher.lm_head[frequent])
    return head, teacher
