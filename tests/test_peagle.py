"""P-EAGLE heads: all drafts of a chain in one pass, through stock vLLM's own class, equal to the reference's."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from vllm_eagle_plugin.conversion import convert
from vllm_eagle_plugin.conversion.doctor import diagnose
from vllm_eagle_plugin.conversion.verify import verify

from vllm_eagle_plugin import record
from vllm_eagle_plugin.configs import Eagle3Config
from vllm_eagle_plugin.errors import HeadError

from .engine import engine
from .random_models import VOCAB, WIDTH, random_head, random_prompts, random_target
from .references import public_id, reference_drafts
from .test_drafts import K

MASK, DRAFTS, LAYERS = 7, 300, [1, 3, 5]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A target, and a head as speculators saves it: nested layer config, mask_hidden [1, 1, A * H]."""
    folder = tmp_path_factory.mktemp("peagle")
    model = random_target(folder / "target")
    config = Eagle3Config(
        vocab_size=VOCAB, hidden_size=WIDTH, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        intermediate_size=256, eagle_aux_hidden_state_layer_ids=LAYERS, own_lm_head=True, draft_vocab_size=DRAFTS,
        parallel_drafting=True, mask_token_id=MASK,
    )  # fmt: skip
    head = random_head(config, model)
    with torch.no_grad():
        head.mask_hidden.normal_()
    state = head.state_dict()
    mask = torch.zeros(VOCAB, dtype=torch.bool)
    mask[torch.arange(DRAFTS) + state["d2t"]] = True
    (folder / "head").mkdir()
    save_file({**state, "t2d": mask}, folder / "head" / "model.safetensors")
    layers = {
        "model_type": "llama", "hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "intermediate_size": 256, "rms_norm_eps": config.rms_norm_eps, "rope_theta": 10000.0,
        "num_hidden_layers": 1, "vocab_size": VOCAB,
    }  # fmt: skip
    described = {
        "speculators_model_type": "peagle", "speculators_version": "0.9.0", "architectures": ["PEagleSpeculator"],
        "transformer_layer_config": layers, "draft_vocab_size": DRAFTS, "mask_token_id": MASK,
        "eagle_aux_hidden_state_layer_ids": LAYERS, "norm_before_residual": False,
    }  # fmt: skip
    (folder / "head" / "config.json").write_text(json.dumps(described))
    return folder, model, head


@pytest.mark.engine
def test_all_drafts_of_one_pass_are_the_references(made, tmp_path):
    folder, model, head = made
    done = convert(folder / "head", str(folder / "target"), tmp_path / "out")
    assert done.detection.reader.name == "speculators-peagle"
    assert not done.layout.needs_plugin
    assert json.loads(done.serve_command.split("--speculative-config ")[1].strip("'"))["parallel_drafting"] is True
    seen: list[record.Proposal] = []
    record.observers.append(seen.extend)
    asked = random_prompts(12, 30)
    try:
        with engine(folder / "target", done.output, K) as running:
            outputs = running.generate(asked, max_tokens=20)
            order = running.request_ids
    finally:
        record.observers.clear()
    compared = 0
    for request, prompt, output in zip(order, asked, outputs, strict=True):
        expected = reference_drafts(head, model, prompt + output)
        for proposal in (p for p in seen if public_id(p) == request and p.position < len(expected)):
            assert expected.agree(proposal.position, proposal.drafts)
            compared += K
    assert compared >= 200


def test_a_mask_without_its_token_is_refused(made, tmp_path):
    folder, *_ = made
    described = json.loads((folder / "head" / "config.json").read_text())
    del described["mask_token_id"]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").symlink_to(folder / "head" / "model.safetensors")
    (broken / "config.json").write_text(json.dumps(described))
    with pytest.raises(HeadError, match="outside the head's folder"):
        convert(broken, str(folder / "target"), tmp_path / "out")
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors").write_bytes((folder / "head" / "model.safetensors").read_bytes())
    with pytest.raises(HeadError, match="mask_token_id is None"):
        convert(broken, str(folder / "target"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.engine
@pytest.mark.parametrize("plain", [False, True])
def test_verify_compares_all_drafts_of_one_pass(plain, made, tmp_path):
    folder, *_ = made
    done = convert(folder / "head", str(folder / "target"), tmp_path / "out")
    found = verify(folder / "head", str(folder / "target"), done.output, plain=plain)
    assert found.passed, found.why
    assert len(found.figures["logits"]) == K
    assert found.figures["positions"] >= 200


def test_doctor_measures_chains_of_one_pass(made):
    """A random head agrees with nothing, and is told so."""
    folder, *_ = made
    found = diagnose(folder / "head", str(folder / "target"))
    assert found.kind == "beyond-repair"
    assert len(found.outcome.best.measured().per_depth) == 4
