"""What our heads cannot do on Model Runner V2 is refused before anything is loaded; what V2 lacks, when it is met."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vllm_eagle_plugin import preflight
from vllm_eagle_plugin.compat import speculator, versions
from vllm_eagle_plugin.compat.symbols import CHAINS_V2, Symbol
from vllm_eagle_plugin.errors import HeadError
from vllm_eagle_plugin.reference import build_reference

from .cases import CASES
from .front_end import assert_refused, front_end
from .known_answer import save_head


@pytest.fixture
def head(head_folder):
    return lambda name="feature": save_head(build_reference(CASES[name]()), head_folder)


@pytest.mark.v2_only(quick=True)
def test_versions_before_the_first_with_this_v2(monkeypatch, head, targets):
    """The error names the version found, and V1 goes on serving."""
    monkeypatch.setattr(versions, "vllm_distribution", lambda: ("vllm", "0.31.0"))
    head()
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    assert front_end(targets().folder, head()).speculative_config.method == "eagle"
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert_refused(
        ("vllm 0.31.0", "Model Runner V2 is older than that of 0.32", "VLLM_USE_V2_MODEL_RUNNER=0"),
        targets().folder, head(),
    )  # fmt: skip


def test_a_v2_that_lacks_something(monkeypatch):
    """What is there today passes; the name and the version are in the error for what is not."""
    speculator.require_v2()
    more = (
        Symbol("vllm.v1.worker.gpu.spec_decode", "fly"),
        Symbol("vllm.v1.worker.gpu.nowhere", "walk"),
        Symbol("vllm.v1.worker.gpu.spec_decode.speculator", "DraftModelSpeculator.capture", ("size",)),
    )
    monkeypatch.setattr(speculator, "CHAINS_V2", (*CHAINS_V2, *more))
    with pytest.raises(HeadError) as caught:
        speculator.require_v2()
    for part in (
        *versions.vllm_distribution(), "vllm.v1.worker.gpu.spec_decode has no fly", "gpu.nowhere has no walk",
        "DraftModelSpeculator.capture takes ; size were expected first",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_the_head_is_asked_for_before_anything_of_ours_is_checked(monkeypatch):
    """A speculator of vLLM's own is built as ever, whatever V2 lacks."""
    monkeypatch.setattr(speculator, "CHAINS_V2", (Symbol("vllm", "nothing"),))
    module = SimpleNamespace(init_speculator=lambda vllm_config, device, states: "stock")
    speculator.hook_init_speculator(module)
    hooked = module.init_speculator
    speculator.hook_init_speculator(module)
    assert module.init_speculator is hooked, "hooked twice"
    config = SimpleNamespace(
        speculative_config=SimpleNamespace(draft_model_config=SimpleNamespace(hf_config=None)),
        additional_config=None,
        parallel_config=SimpleNamespace(worker_cls="auto"),
    )
    assert hooked(config, "cpu", "states") == "stock"
    config.speculative_config.draft_model_config.hf_config = SimpleNamespace(model=CASES["feature"]())
    with pytest.raises(HeadError, match="vllm has no nothing"):
        hooked(config, "cpu", "states")


def test_heads_that_draft_in_one_pass():
    config = SimpleNamespace(speculative_config=SimpleNamespace(parallel_drafting=True, draft_model_config=None))
    with pytest.raises(HeadError, match="vLLM's Model Runner V2 drafts one after another"):
        preflight.check_v2(config)


def test_prompts_divided_among_ranks():
    drafting = SimpleNamespace(hf_config=SimpleNamespace(model=CASES["feature"]()))
    config = SimpleNamespace(
        speculative_config=SimpleNamespace(parallel_drafting=False, draft_model_config=drafting),
        parallel_config=SimpleNamespace(prefill_context_parallel_size=2),
    )
    with pytest.raises(HeadError, match="prefill context parallelism with a head that has no attention"):
        preflight.check_v2(config)
    config.parallel_config.prefill_context_parallel_size = 1
    preflight.check_v2(config)


def test_adapters_on_a_cpu(head, targets):
    assert_refused(("LoRA adapters beside a draft head on a CPU",), targets().folder, head(), 4, {"enable_lora": True})
    assert front_end(targets().folder, None, options={"enable_lora": True}).lora_config is not None


@pytest.mark.parametrize("name", ["surgery-own-embedding", "eagle-own-lm-head"])
def test_pipelines_on_v1(name, head, targets):
    options = {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}
    assert_refused(("pipeline parallelism", "V1 model runner"), targets().folder, head(name), 4, options)


@pytest.mark.parametrize("name", ["feature", "eagle", "eagle3-shared-lm-head"])
def test_pipelines_of_heads_that_read_the_targets_embedding(name, head, targets):
    options = {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}
    assert_refused(("pipeline parallelism", "its own embedding"), targets().folder, head(name), 4, options)
