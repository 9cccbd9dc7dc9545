"""What `inspect` says stock vLLM would do with a head, against what stock vLLM does."""

from __future__ import annotations

import pytest
from vllm_eagle_plugin.conversion import inspect_head
from vllm_eagle_plugin.conversion.options import Options

from .producers import FIXTURES
from .producers.making import make
from .stock_heads import run_stock

#: Fixture -> outcome; with part of the message for those that are refused.
REFUSED = {
    "safeailab-eagle: Qwen2": "Qwen2ForCausalLM",
    "hass-layernorm": "embed_layernorm",
    "sglang-eagle": "LlamaForCausalLMEagle",
    "vllm-v0": "lm_head",
    "safeailab-eagle3: Vicuna": "draft_id_to_target_id",
    "speculators-eagle3": "verifier_lm_head",
    "wrapped state dict": "state_dict",
    "surgery": "",
    "DeepSpeed folder": "Invalid repository ID or local directory",
}
RUN = ["modelopt: vLLM's count", "modelopt: no aux"]
RUINED = ["vllm-eagle3: TorchSpec, native"]  # more of them in test_silent
K, TOKENS = 3, 24


@pytest.mark.engine
def test_verdicts(target_for, tmp_path):
    jobs, outcomes = [], {}
    for number, name in enumerate([*REFUSED, *RUN, *RUINED]):
        made = make(name, target_for, tmp_path / str(number))
        fixture = FIXTURES[name]
        config = made.trained / fixture.config if fixture.config else None
        stock = inspect_head(
            made.trained, Options(**fixture.options), config=config, target=str(made.target.folder)
        ).stock
        assert stock is not None, name
        outcomes[name] = stock
        prompts = [made.target.walk(i, 5) for i in range(8)]
        jobs.append(
            {
                "target": made.target.folder,
                "head": made.trained,
                "method": made.done.reading.config.method,
                "prompts": prompts,
                "k": K,
                "tokens": TOKENS,
            }
        )
    found = dict(zip(outcomes, run_stock(jobs), strict=True))
    for name, part in REFUSED.items():
        assert outcomes[name]["outcome"] == "refuses", outcomes[name]
        assert "error" in found[name], f"stock vLLM ran {name}: {found[name]}"
        assert part in outcomes[name]["text"]
        assert part in found[name]["error"], found[name]
    for name in RUN:
        assert outcomes[name]["outcome"] == "runs", outcomes[name]
        assert found[name].get("accepted") == [1.0] * K, (name, found[name])
    for name in RUINED:
        assert outcomes[name]["outcome"] == "ruins", outcomes[name]
        assert found[name].get("accepted", [1.0])[-1] < 0.5, (name, found[name])
