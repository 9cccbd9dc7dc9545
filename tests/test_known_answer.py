"""Every architecture and flag, in the real engine: acceptance exactly k + 1, output exactly the language."""

from __future__ import annotations

import pytest

from .cases import CASES, draft_length
from .engine import engine
from .known_answer import known_answer_head, save_head
from .runner_v2 import ON_V2

pytestmark = [pytest.mark.engine, pytest.mark.v2]
PROMPTS, TOKENS = 12, 41
#: One case a family, which every run of the suite puts on both model runners.
QUICK = ("surgery", "eagle-fc-bias", "eagle3-reduced")


def walks(target, count=PROMPTS):
    return [target.walk(int(target.successor[i % 24]), 3 + 2 * i) for i in range(count)]


def continues(target, prompt, output):
    return output == target.walk(prompt[-1], len(output) + 1)[1:]


def assert_exact(running, target, k, **sampling):
    """Prompts of the language are continued, and every single draft is accepted."""
    prompts = walks(target)
    before = running.counters()
    outputs = running.generate(prompts, max_tokens=TOKENS, **sampling)
    counted = running.counters() - before
    assert all(continues(target, p, o) for p, o in zip(prompts, outputs, strict=True))
    assert counted.drafts >= PROMPTS * (TOKENS - 1) // (k + 1)
    assert counted.per_position == (counted.drafts,) * k, f"rejected drafts: {counted}"
    assert counted.acceptance_length == k + 1


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.v2(quick=True)) if n in QUICK else n for n in CASES]
)
def test_every_draft_is_accepted(name, target_for, head_folder):
    config = CASES[name]()
    target = target_for(config)
    k = draft_length(config)
    save_head(known_answer_head(config, target, k), head_folder)
    with engine(target.folder, head_folder, k) as running:
        assert running.on_v2 == ON_V2
        assert_exact(running, target, k)
        if name in ("feature", "eagle3-reduced"):  # drawn, not argmax: the language leaves no choice
            assert_exact(running, target, k, temperature=0.05)


@pytest.mark.parametrize("kind", ["llama-tied", "gpt2", "gemma2"])
@pytest.mark.parametrize("name", ["feature", "surgery", "eagle-fc-bias"])
def test_targets_that_hide_their_weights(name, kind, targets, head_folder):
    """GPT-2 has no `.model`, Gemma-2 no `lm_head`; all three tie them."""
    config = CASES[name]()
    target = targets(kind)
    if kind == "gemma2":  # as the target's family does it; a head trained on Gemma was trained so
        config.embed_scale, config.logit_softcap = float(target.model.config.hidden_size**0.5), 30.0
    save_head(known_answer_head(config, target), head_folder)
    with engine(target.folder, head_folder) as running:
        assert_exact(running, target, 4)


@pytest.mark.parametrize("name", ["feature", "projection", "eagle-fc-bias", "eagle3-reduced"])
def test_bfloat16(name, target_for, head_folder):
    config = CASES[name]()
    target = target_for(config)
    save_head(known_answer_head(config, target), head_folder)
    with engine(target.folder, head_folder, dtype="bfloat16") as running:
        assert_exact(running, target, 4)


@pytest.mark.parametrize("name", ["feature-reduced", "eagle-qkv-bias", "eagle3-reduced"])
def test_drawn_drafts(name, target_for, head_folder):
    """`draft_sample_method: probabilistic`: drafts drawn from the head's own distribution."""
    config = CASES[name]()
    target = target_for(config)
    save_head(known_answer_head(config, target), head_folder)
    with engine(target.folder, head_folder, speculative={"draft_sample_method": "probabilistic"}) as running:
        assert_exact(running, target, 4, temperature=0.05)
        assert_exact(running, target, 4)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.extended) for n in ("feature", "eagle3-reduced")] + ["eagle-fc-bias"]
)
def test_torch_compile(name, target_for, head_folder):
    config = CASES[name]()
    target = target_for(config) if config.reduced_vocab else target_for(config, layers=2)  # what is compiled adds up
    save_head(known_answer_head(config, target), head_folder)
    with engine(target.folder, head_folder, enforce_eager=False, max_num_seqs=8) as running:
        assert_exact(running, target, 4)
