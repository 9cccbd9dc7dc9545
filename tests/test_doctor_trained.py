"""Faults planted in the demo's trained head, for a real chat model: small differences instead of all or nothing."""

from __future__ import annotations

import json
import shlex

import pytest
from safetensors.torch import load_file
from vllm_eagle_plugin.conversion.doctor import diagnose
from vllm_eagle_plugin.conversion.doctor.agreement import Material
from vllm_eagle_plugin.conversion.observe import Observer

from vllm_eagle_plugin.demo.run import shipped_head
from vllm_eagle_plugin.demo.target import build_target

from .faults import Saved, chunks, layers, says, stray

WIDTH, VOCAB = 576, 49152
#: Name -> what is done to the head, and the options that put it right (None: it is right).
FAULTS = {
    "nothing": ([], None),
    "layers counted as outputs": ([layers(1, 14, 26)], "--aux-ids 2,15,27"),
    "layers in the other order": ([chunks(2, 1, 0)], "--aux-ids 27,15,2"),
    "residual and feedback": (
        [says(norm_before_residual=True, norm_output=True)],
        "--set norm_before_residual=false --set feedback=pre_norm",
    ),
    "embedding never initialised": (
        [stray("embed_tokens.weight", VOCAB, WIDTH, scale=0.02)], "--drop embed_tokens.weight",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return build_target(tmp_path_factory.mktemp("demo") / "target")


@pytest.fixture(scope="module")
def texts():
    """What the target writes, once for all faults; less than the doctor asks for on its own."""
    kept = []

    def material(target, streams):
        if not kept:
            observer = Observer(target)
            kept.append(Material(observer, observer.answer(observer.own_prompts(24), 48), set(streams)))
        kept[0].need(streams)
        return kept[0]

    return material


@pytest.mark.parametrize("fault", FAULTS)
def test_finds_a_fault_in_a_trained_head(fault, target, texts, tmp_path):
    damages, expected = FAULTS[fault]
    head = Saved(
        load_file(shipped_head() / "model.safetensors"), json.loads((shipped_head() / "config.json").read_text())
    )
    for damage in damages:
        damage(head)
    found = diagnose(head.write(tmp_path / "head"), str(target), material=texts)
    if expected is None:
        assert found.kind == "weak", found.verdict
        assert not found.flags
    else:
        assert found.kind == "repairable", found.verdict
        assert sorted(shlex.split(found.flags)) == sorted(shlex.split(expected)), found.verdict
    assert 1.3 < found.expected_length < 2.0
