"""Our heads under everything vLLM's scheduler does: preemption, prefix caching, chunked prefill, two ranks."""

from __future__ import annotations

import pytest

from vllm_eagle_plugin.targets.target import read_target

from .cases import CASES
from .engine import engine
from .known_answer import known_answer_head, save_head
from .test_known_answer import assert_exact, continues

pytestmark = pytest.mark.engine
HEADS = ["feature", "projection", "eagle-fc-bias", "eagle3-reduced"]


@pytest.fixture
def served(target_for, head_folder):
    def make(name):
        config = CASES[name]()
        target = target_for(config)
        provenance = {"target": read_target(str(target.folder)).fingerprint()}
        return target, save_head(known_answer_head(config, target), head_folder, provenance)

    return make


def metric(running, name):
    return sum(m.value for m in running.llm.get_metrics() if m.name == name)


@pytest.mark.parametrize("name", HEADS)
def test_preemption_prefix_caching_and_chunked_prefill(name, served):
    target, head = served(name)
    # Blocks hold 32 tokens: 20 of them cannot hold 12 requests of up to 185 tokens at once.
    options = {"block_size": 32, "num_gpu_blocks_override": 20, "max_num_batched_tokens": 96, "max_num_seqs": 12}
    with engine(target.folder, head, enable_prefix_caching=True, **options) as running:
        prompts = [target.walk(int(target.successor[i % 24]), 40 + 5 * i) for i in range(12)]
        outputs = running.generate(prompts, max_tokens=90)
        running.generate(prompts[-2:], max_tokens=20)
        again = running.generate(prompts[-2:], max_tokens=20)
        counters = running.counters()
        assert metric(running, "vllm:num_preemptions") > 0
        assert metric(running, "vllm:prefix_cache_hits") > 0
    assert all(continues(target, p, o) for p, o in zip(prompts, outputs, strict=True))
    assert all(continues(target, p, o) for p, o in zip(prompts[-2:], again, strict=True))
    if name in ("feature", "projection"):
        assert counters.accepted == counters.draft_tokens
    else:  # stock vLLM leaves one mistaken entry in a head's KV cache behind each chunk of a prompt
        assert counters.accepted > 0.9 * counters.draft_tokens


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(n, marks=pytest.mark.extended) for n in ("feature-reduced", "eagle-qkv-bias")), "eagle3-reduced"],
)
def test_tensor_parallel(name, served):
    target, head = served(name)
    with engine(
        target.folder, head, tensor_parallel_size=2, distributed_executor_backend="mp", max_num_seqs=4
    ) as running:
        assert_exact(running, target, 4)


@pytest.mark.v2_only
@pytest.mark.parametrize("name", ["feature"])
def test_asynchronous_scheduling(name, served, monkeypatch):
    """The next step is scheduled before this one's tokens are known. vLLM leaves it out on a CPU, so it is put back."""
    from vllm.platforms.cpu import CpuPlatform

    update = CpuPlatform.check_and_update_config.__func__

    def keep(cls, config):
        update(cls, config)
        config.scheduler_config.async_scheduling = True

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", classmethod(keep))
    target, head = served(name)
    with engine(target.folder, head) as running:
        core = running.llm.llm_engine.engine_core.engine_core
        assert type(core.scheduler).__name__ == "AsyncScheduler"
        assert core.batch_queue is not None
        assert_exact(running, target, 4)


@pytest.mark.parametrize("name", ["feature", "eagle3-reduced"])
def test_near_the_end_of_the_context(name, served):
    """Drafting stops where it no longer fits, the output goes on to the last token."""
    target, head = served(name)
    with engine(target.folder, head, max_model_len=64) as running:
        prompts = [target.walk(int(target.successor[i]), 20 + i) for i in range(8)]
        outputs = running.generate(prompts, max_tokens=64)
    assert all(len(p) + len(o) == 64 for p, o in zip(prompts, outputs, strict=True))
    assert all(continues(target, p, o) for p, o in zip(prompts, outputs, strict=True))
