"""Thousands of configs and headers that nobody would write: never a traceback, never a partial output."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from vllm_eagle_plugin.conversion import convert, inspect_head
from vllm_eagle_plugin.conversion.readers import READERS

from vllm_eagle_plugin.errors import HeadError

from ..plain_heads import MAKERS

CASES = 500  # of each kind, for each of two families
FAMILIES = ["safeailab-eagle", "safeailab-eagle3"]
CALM = settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["llama", "eagle", "next", "LlamaForCausalLMEagle3", [1, 3, 5], [2, 0, 1], {"rope_theta": 7}]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = [
    "architectures", "model_type", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "num_hidden_layers", "vocab_size", "rms_norm_eps", "max_position_embeddings", "rope_theta", "rope_parameters",
    "rope_scaling", "head_dim", "draft_vocab_size", "eagle_aux_hidden_state_layer_ids", "eagle_config", "bias",
    "norm_before_residual", "norm_output", "mask_token_id", "transformer_layer_config", "model",
    "speculators_model_type", "speculators_version", "token_pairing", "auto_map",
]  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def whole(request, targets, tmp_path_factory):
    """A sound head's tensors as bytes, its config, and a target it converts for."""
    torch.manual_seed(0)
    head = MAKERS[request.param]()
    tensors = save({name: tensor.contiguous() for name, tensor in head.tensors.items()})
    return tensors, head.config, str(targets().folder), tmp_path_factory.mktemp("fuzz")


def refused(run: Callable[[], object]) -> bool:
    """Whether `run` ended in a whole error: what was found, and what was expected."""
    try:
        run()
    except HeadError as error:
        if not error.expected:
            raise AssertionError(f"does not say what was expected: {error}") from error
        return True
    return False


def attempt(room: Path, target: str, weights: bytes, config: bytes, **options) -> bool:
    """Whether the head was converted; anything but a `HeadError` gets through to the test."""
    head, output = room / "head", room / "out"
    shutil.rmtree(head, ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    head.mkdir()
    (head / "model.safetensors").write_bytes(weights)
    (head / "config.json").write_bytes(config)
    refused(lambda: inspect_head(head))
    if refused(lambda: convert(head, target, output, **options)):
        assert sorted(p.name for p in room.iterdir()) == ["head"], "something was left behind"
        return False
    assert sorted(p.name for p in output.iterdir()) == ["config.json", "model.safetensors"]
    return True


def test_configs(whole):
    weights, described, target, room = whole
    converted = []

    @CALM
    @given(
        st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=4),
        st.sets(st.sampled_from(KEYS), max_size=2),
    )
    def run(changes: dict, gone: set) -> None:
        config = {k: v for k, v in {**described, **changes}.items() if k not in gone}
        converted.append(attempt(room, target, weights, json.dumps(config).encode()))

    run()
    assert len(converted) >= CASES
    assert any(converted)
    assert not all(converted)


def test_headers(whole):
    """Tensor headers with names, types, shapes and offsets that do not fit."""
    weights, described, target, room = whole
    size = struct.unpack("<Q", weights[:8])[0]
    entries, data = json.loads(weights[8 : 8 + size]), weights[8 + size :]
    names = [name for name in entries if name != "__metadata__"]
    turned_down = []

    @CALM
    @given(st.data())
    def run(draw) -> None:
        changed = json.loads(json.dumps(entries))
        for _ in range(draw.draw(st.integers(1, 3))):
            name = draw.draw(st.sampled_from(names))
            change = draw.draw(st.sampled_from(["shape", "dtype", "name", "offsets", "drop", "any"]))
            if not isinstance(changed.get(name), dict):
                continue
            if change == "drop":
                del changed[name]
            elif change == "name":
                changed[draw.draw(st.text(max_size=20) | st.sampled_from(names))] = changed.pop(name)
            elif change == "shape":
                changed[name]["shape"] = draw.draw(st.lists(st.integers(-1, 1 << 64), max_size=4))
            elif change == "dtype":
                changed[name]["dtype"] = draw.draw(st.sampled_from(["F16", "I64", "BOOL", "F8_E4M3", "U8", "F64", ""]))
            elif change == "offsets":
                changed[name]["data_offsets"] = draw.draw(st.lists(st.integers(0, 1 << 64), max_size=3))
            else:
                changed[name] = draw.draw(VALUES)
        text = json.dumps(changed).encode()
        turned_down.append(
            not attempt(room, target, struct.pack("<Q", len(text)) + text + data, json.dumps(described).encode())
        )

    run()
    assert len(turned_down) >= CASES
    assert any(turned_down)


def test_bytes(whole):
    """Files with bytes changed, cut and repeated."""
    weights, described, target, room = whole
    tried = []

    @settings(CALM, max_examples=150)
    @given(st.integers(0, 4000), st.binary(max_size=20), st.integers(0, 100))
    def run(at: int, content: bytes, cut: int) -> None:
        changed = weights[:at] + content + weights[at + len(content) : len(weights) - cut]
        tried.append(attempt(room, target, changed, json.dumps(described).encode()))

    run()
    assert len(tried) >= 150


@pytest.mark.parametrize("producer", READERS)
def test_every_reader_refuses_what_is_not_its_own(producer, whole):
    """Forced upon tensors of another kind, a reader says so."""
    weights, described, target, room = whole
    from vllm_eagle_plugin.conversion.options import Options

    options = Options(producer=producer)
    attempt(room, target, weights, json.dumps(described).encode(), options=options)
    attempt(room, target, save({"weight": torch.ones(3, 3)}), b"{}", options=options)
