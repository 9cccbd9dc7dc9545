"""`vllm serve HEAD`: a written head names its target, its method and its tokens, and loses none of its flags so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from vllm_eagle_plugin.conversion import convert, inspect_head
from vllm_eagle_plugin.conversion.detect import detect
from vllm_eagle_plugin.conversion.one_word import findable
from vllm_eagle_plugin.conversion.options import Options
from vllm_eagle_plugin.conversion.source import read_source

import vllm_eagle_plugin
from vllm_eagle_plugin.errors import HeadError

from .engine import engine
from .producers.making import make
from .stock import run_apart
from .test_known_answer import assert_exact, walks

#: Stock layouts and ours, of every method and with flags of their own.
WRITTEN = (
    "feature", "projection", "safeailab-eagle", "safeailab-eagle: Llama-3", "safeailab-eagle3",
    "vllm-eagle3: EAGLE-3.1", "specforge: norm_output false", "speculators-eagle3: Qwen3", "speculators-peagle",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(target_for, tmp_path_factory):
    known = {}

    def get(name):
        if name not in known:
            torch.manual_seed(0)
            known[name] = make(name, target_for, tmp_path_factory.mktemp("written"))
        return known[name]

    return get


def front_end(model: Path, **settings):
    """What vLLM's front end makes of `vllm serve MODEL`."""
    vllm_eagle_plugin.register()
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(
        model=str(model), skip_tokenizer_init=True, max_model_len=256, **settings
    ).create_engine_config()  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_is_what_the_long_command_gives(name, made):
    found = made(name)
    done = found.done
    told = {"method": done.reading.config.method, "model": str(done.output), "num_speculative_tokens": done.tokens}
    long = front_end(found.target.folder, speculative_config={**told, **done.layout.speculative})
    short = front_end(done.output)
    assert short.model_config.model == long.model_config.model == str(found.target.folder)
    for key in ("method", "model", "num_speculative_tokens", "parallel_drafting"):
        assert getattr(short.speculative_config, key) == getattr(long.speculative_config, key), key
    drafts = [c.speculative_config.draft_model_config.hf_config.to_dict() for c in (short, long)]
    assert drafts[0] == drafts[1]
    inner = drafts[0].get("model", drafts[0])
    lost = {k for k, v in found.config.items() if k not in ("architectures", "model_type") and inner.get(k) != v}
    # transformers' own words, and a base that stands in rope_parameters too
    assert lost <= {"max_position_embeddings", "rope_theta", "_name_or_path", "id2label"}


@pytest.mark.parametrize("name", ["safeailab-eagle3", "projection"])
def test_tokens_can_be_said_beside_it(name, made):
    asked = 1 if name == "projection" else 5
    short = front_end(made(name).done.output, speculative_config={"num_speculative_tokens": asked})
    assert short.speculative_config.num_speculative_tokens == asked
    assert short.speculative_config.method == made(name).done.reading.config.method


@pytest.mark.engine
@pytest.mark.parametrize("name", ["safeailab-eagle: Llama-3", "vllm-eagle3: EAGLE-3.1"])
def test_stock_vllm_serves_exactly(name, made):
    """Without the plugin: the stock layouts need none."""
    found = made(name)
    assert not found.done.layout.needs_plugin
    served = run_apart(plugin=False, target=found.done.output, prompts=walks(found.target))
    assert not served["modules"]
    assert served["counters"]["accepted"] == served["counters"]["draft_tokens"] > 0


@pytest.mark.engine
@pytest.mark.parametrize("name", ["safeailab-eagle", "feature", "specforge: norm_output false"])
def test_the_plugin_serves_exactly(name, made):
    found = made(name)
    assert found.done.layout.needs_plugin
    with engine(found.done.output) as running:
        assert_exact(running, found.target, found.done.tokens)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_was_written_is_read_as_ours(name, made, tmp_path):
    """Never as a head of the producers that write the same layout or the same keys; and comes out as it is."""
    found = made(name)
    assert detect(read_source(found.done.output)).reader.name == "converted"
    again = convert(found.done.output, str(found.target.folder), tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {k: v for k, v in written.items() if k != "eagle_provenance"} == found.config
    assert again.layout.needs_plugin == found.done.layout.needs_plugin
    ours = load_file(tmp_path / "again" / "model.safetensors")
    assert set(ours) == set(found.tensors)
    assert all(torch.equal(ours[n], t) for n, t in found.tensors.items())


def test_stock_vllm_runs_what_was_written_for_it(made):
    found = made("safeailab-eagle3")
    assert inspect_head(found.done.output, target=str(found.target.folder)).stock["outcome"] == "runs"


def test_a_converted_head_is_not_read_for_another_target(made, targets, tmp_path):
    found = made("safeailab-eagle: Llama-3")
    with pytest.raises(HeadError, match="this draft head was made for the target"):
        convert(found.done.output, str(targets("llama", layers=7).folder), tmp_path / "out")


def test_options_that_change_readings_change_nothing_here(made, tmp_path):
    found = made("safeailab-eagle3")
    with pytest.raises(HeadError, match="--rope-theta was given for a converted head"):
        convert(found.done.output, str(found.target.folder), tmp_path / "out", Options(rope_theta=5.0))


def test_targets_by_name(tmp_path, monkeypatch):
    """Hub ids as they are, from the cache's folders too; other folders by their full path."""
    snapshot = tmp_path / "models--org--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert findable("org/some--model") == "org/some--model"
    assert findable(str(snapshot)) == "org/some--model"
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path)
    assert findable("plain") == str(tmp_path / "plain")
