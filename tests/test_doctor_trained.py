"""Faults planted in the demo's trained head, for a real chat model: small differences instead of all or nothing."""

from __future__ import annotations

import functools
import json
import shlex

import pytest
from safetensors.torch import load_file
from vllm_eagle_plugin.conversion import convert
from vllm_eagle_plugin.conversion.doctor import diagnose
from vllm_eagle_plugin.conversion.doctor.agreement import Material

from vllm_eagle_plugin.demo.run import shipped_head
from vllm_eagle_plugin.targets.observer import Observer

from .faults import Saved
from .trained_faults import PAIRS, SINGLE, SOUND, Case

#: Prompts and tokens of an answer: less than the doctor asks for on its own, and enough for faults that ruin a head.
LITTLE, ENOUGH = (12, 32), (24, 48)


@pytest.fixture(scope="module")
def texts():
    """What the target writes, once for all faults, by how much."""
    kept = {}

    def material(target, streams, amount):
        if amount not in kept:
            observer = Observer(target)
            prompts, tokens = amount
            kept[amount] = Material(observer, observer.answer(observer.own_prompts(prompts), tokens), set(streams))
        kept[amount].need(streams)
        return kept[amount]

    return material


@pytest.fixture
def check(demo_target, texts, tmp_path):
    """`check(case, amount)`: the doctor's answer to a damaged head, which must be the one expected."""

    def run(case: Case, amount: tuple[int, int] = ENOUGH) -> str:
        head = Saved(
            load_file(shipped_head() / "model.safetensors"), json.loads((shipped_head() / "config.json").read_text())
        )
        for damage in case.damages:
            damage(head)
        found = diagnose(
            head.write(tmp_path / "head"), str(demo_target), material=functools.partial(texts, amount=amount)
        )
        assert found.kind == case.kind, found.verdict
        assert sorted(shlex.split(found.flags)) == sorted(shlex.split(case.flags)), found.verdict
        assert case.word in found.verdict
        if case.kind != "beyond-repair":
            assert 1.2 < found.expected_length < 2.0
        if case.flags and case.whole:
            repaired = convert(tmp_path / "head", str(demo_target), tmp_path / "out", found.outcome.best.options)
            sound = convert(shipped_head(), str(demo_target), tmp_path / "sound")
            assert (repaired.output / "model.safetensors").read_bytes() == (
                sound.output / "model.safetensors"
            ).read_bytes()
            assert repaired.layout.config == sound.layout.config
        return found.verdict

    return run


def test_finds_a_fault_that_ruins_a_trained_head(check):
    """All others take many minutes."""
    check(SINGLE["norm before residual claimed"], LITTLE)


@pytest.mark.extended
@pytest.mark.parametrize("fault", [*SINGLE, *PAIRS])
def test_finds_a_fault(fault, check, record_property):
    record_property("verdict", check((SINGLE | PAIRS)[fault]))


@pytest.mark.extended
@pytest.mark.parametrize("form", SOUND)
def test_calls_a_sound_head_sound(form, check, record_property):
    record_property("verdict", check(SOUND[form]))
