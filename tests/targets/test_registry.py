"""Targets of every architecture that vLLM registers, read from disk and compared with the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vllm_eagle_plugin.targets.observer import Observer
from vllm_eagle_plugin.targets.target import Target, read_target

from .registry import KINDS, NOT_COMPARED, in_transformers, registered
from .tiny import HEAD_DIM, PLAIN, VOCAB, WIDTH, save, tiny_model

COMPARED = [a for a in registered() if in_transformers(a) and a not in NOT_COMPARED]
#: Whose own class does more between the embedding and its first layer than scale it (positions, norms, convolutions).
_MORE_THAN_EMBEDDING = {
    "BloomForCausalLM", "DeepseekV4ForCausalLM", "HYV4ForCausalLM", "FalconMambaForCausalLM", "GPTBigCodeForCausalLM", "GPT2LMHeadModel", "Gemma3nForCausalLM", "InklingForCausalLM",
    "InklingForConditionalGeneration", "Mamba2ForCausalLM", "MambaForCausalLM", "MuseGlimmerForConditionalGeneration",
    "OPTForCausalLM",
}  # fmt: skip
#: Whose logits transformers computes in another way than vLLM does, or as no function of the last state alone.
_OTHER_LOGITS = {"Cohere2VisionForConditionalGeneration", "MuseGlimmerForConditionalGeneration"}


def test_every_registered_architecture_is_accounted_for():
    assert len(COMPARED) >= 80
    known = {a for a in registered() if in_transformers(a)}
    assert set(NOT_COMPARED) <= known, "nothing is listed that is not there"
    assert set(COMPARED) | set(NOT_COMPARED) == known
    assert set(KINDS) <= set(COMPARED)


@pytest.mark.parametrize("architecture", NOT_COMPARED)
@pytest.mark.extended
def test_what_is_not_compared_cannot_be(architecture, tmp_path):
    """An architecture leaves the list as soon as it can."""
    if (
        "cannot be" in NOT_COMPARED[architecture]
        or "timm" in NOT_COMPARED[architecture]
        or "refused" in NOT_COMPARED[architecture]
    ):
        with pytest.raises(Exception):  # noqa: B017, PT011  (whatever its class raises)
            tiny_model(architecture)


@pytest.mark.parametrize("architecture", KINDS)
def test_a_kind_of_layout(architecture, tmp_path):
    check(architecture, tmp_path)


@pytest.mark.extended
@pytest.mark.parametrize("architecture", [a for a in COMPARED if a not in KINDS])
def test_an_architecture(architecture, tmp_path):
    check(architecture, tmp_path)


def check(architecture: str, folder: Path) -> None:
    """The target read from disk is the model that wrote it."""
    model = tiny_model(architecture)
    save(model, folder)
    target = read_target(str(folder))
    speaks = getattr(model, "thinker", getattr(model, "language_model", model)) if _bare(model) else model
    output = speaks.get_output_embeddings()
    assert (target.hidden_size, target.vocab_size) == (WIDTH, VOCAB)
    assert target.num_layers == model.config.get_text_config(decoder=True).num_hidden_layers
    assert target.config.head_dim in (HEAD_DIM, None)
    assert torch.equal(target.embedding.load(), speaks.get_input_embeddings().weight)
    assert torch.equal(target.lm_head.load(), output.weight)
    computed = _computed(speaks)
    if computed is not None:
        _same_states(architecture, target, output, *computed)


def _bare(model: Any) -> bool:
    """Whether the model only holds others."""
    try:
        return model.get_output_embeddings() is None
    except NotImplementedError:
        return True


def _computed(model: Any) -> tuple[Tensor, Any] | None:
    """Some tokens and all that the model says of them; None if it cannot run, or not on text alone."""
    ids = torch.arange(PLAIN, 18)[None]
    try:
        with torch.no_grad():
            return ids, model(input_ids=ids, output_hidden_states=True)
    except Exception:
        return None


def _same_states(architecture: str, target: Target, output: Any, ids: Tensor, out: Any) -> None:
    """What is observed of the target on disk is what the model computes."""
    config = target.config
    states = Observer(target).states(ids, [0])
    if architecture not in _OTHER_LOGITS:
        logits = torch.nn.functional.linear(states.last, target.lm_head.load(), output.bias) * config.logit_scale
        if config.logit_softcap is not None:
            logits = torch.tanh(logits / config.logit_softcap) * config.logit_softcap
        torch.testing.assert_close(logits, out.logits, atol=1e-3, rtol=1e-3)
    if architecture not in _MORE_THAN_EMBEDDING:
        embedded = target.embedding.load()[ids] * config.embed_scale
        torch.testing.assert_close(states.streams[0], embedded, atol=1e-4, rtol=1e-4)
