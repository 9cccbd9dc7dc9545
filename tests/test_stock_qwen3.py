"""EAGLE-3 heads with q/k norms go out as stock vLLM's Qwen3 class, which computes what their reference does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_eagle_plugin.conversion.reading import Reading
from vllm_eagle_plugin.conversion.route import choose_layout
from vllm_eagle_plugin.conversion.verify.written import read_written
from vllm_eagle_plugin.conversion.write import write_tensors

from vllm_eagle_plugin.configs import Eagle3Config
from vllm_eagle_plugin.reference import ReferenceHead, build_reference, unroll
from vllm_eagle_plugin.targets.stored import Stored
from vllm_eagle_plugin.targets.target import read_target

from . import in_process
from .cases import CASES
from .known_answer import Target

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases of q, k and v": {"qkv_bias": True},
    "two layers, normed feedback": {"num_hidden_layers": 2, "feedback": "post_norm", "norm_before_residual": True},
    "a window": {"sliding_window": 5},
}
STEPS = 3


def random_head(target: Target, **flags: Any) -> ReferenceHead:
    torch.manual_seed(0)
    told = {k: v for k, v in CASES["eagle3"]().to_dict().items() if k not in ("transformers_version", "architectures")}
    head = build_reference(Eagle3Config(**{**told, "qk_norm": True, **flags})).eval()
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.normal_(std=0.2)
            if "norm" in name:
                parameter.add_(1)
    head.attach_target(target.embedding, target.lm_head)
    return head


def written(head: ReferenceHead, target: Target, folder: Path) -> Any:
    reading = Reading(head.config, {n: Stored.of(t) for n, t in head.state_dict().items()})
    layout = choose_layout(reading, read_target(str(target.folder)))
    folder.mkdir()
    write_tensors(folder / "model.safetensors", layout.tensors)
    (folder / "config.json").write_text(json.dumps(layout.config))
    return layout


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_stock_class_computes_it(variant, targets, tmp_path):
    target = targets()
    head = random_head(target, **VARIANTS[variant])
    layout = written(head, target, tmp_path / "head")
    assert not layout.needs_plugin, layout.why
    assert layout.config["architectures"] == ["Qwen3ForCausalLM"]
    tokens, drafts = torch.arange(13) % 24, [3, 8]
    hidden = target.hidden(tokens[None, :-1], head.config.eagle_aux_hidden_state_layer_ids)
    fed = torch.zeros(1, len(tokens) - 1, STEPS, dtype=torch.long)
    fed[0, -1, : len(drafts)] = torch.tensor(drafts)
    with torch.inference_mode():
        ours = torch.stack([head.logits(s.features[0, -1]) for s in unroll(head, tokens[None], hidden, STEPS, fed=fed)])
        back = read_written(tmp_path / "head", target.embedding, target.lm_head)
        again = torch.stack(
            [back.logits(s.features[0, -1]) for s in unroll(back, tokens[None], hidden, STEPS, fed=fed)]
        )
    torch.testing.assert_close(again, ours)
    with in_process.one_rank():
        model = in_process.draft_model(target.folder, tmp_path / "head", {"method": "eagle3"}, head)
        assert type(model).__name__ == "Eagle3Qwen3ForCausalLM"
        theirs = in_process.chain(model, head, tokens, hidden[0], drafts)
    torch.testing.assert_close(theirs, ours, atol=2e-3, rtol=2e-3)


def test_a_bias_on_o_needs_the_plugin(targets, tmp_path):
    target = targets()
    assert written(random_head(target, qkv_bias=True, o_bias=True), target, tmp_path / "head").needs_plugin
