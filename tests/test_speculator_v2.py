"""Inside our speculator for heads without attention on Model Runner V2: what a CUDA graph and a busy device need."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from .cases import CASES
from .engine import Engine, engine
from .known_answer import known_answer_head, save_head
from .test_known_answer import assert_exact

pytestmark = [pytest.mark.engine, pytest.mark.v2_only(quick=True)]
K, REQUESTS = 4, 12


@pytest.fixture(scope="module")
def served(target_for, tmp_path_factory):
    config = CASES["feature-same-pairing"]()
    target = target_for(config)
    folder = save_head(known_answer_head(config, target), tmp_path_factory.mktemp("v2") / "head")
    with engine(target.folder, folder, K, max_num_seqs=REQUESTS) as running:
        yield running, target


def tensors(speculator) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(speculator).items() if isinstance(value, torch.Tensor)}


def test_what_outlives_a_step_stays_where_it_is(served):
    running, target = served
    speculator = running.runner.speculator
    before = {name: tensor.data_ptr() for name, tensor in tensors(speculator).items()}
    assert {"hidden", "tokens", "previous", "positions", "draft_tokens", "idx_mapping"} <= set(before)
    assert_exact(running, target, K)
    assert {name: tensor.data_ptr() for name, tensor in tensors(speculator).items()} == before


def test_graphs_draft_the_same(served, monkeypatch):
    """Captured sizes are replayed, batches between two sizes are padded, larger ones run eagerly: all accepted.

    A graph of this CPU is the captured function, called again: it sees nothing but the buffers, as a graph does.
    """
    from vllm.config import CUDAGraphMode
    from vllm.v1.worker.gpu import cudagraph_utils

    running, target = served
    speculator = running.runner.speculator
    replayed: list[int] = []

    def capture(manager, create_forward_fn, progress_bar_desc) -> None:
        for desc in manager._capture_descs[CUDAGraphMode.FULL]:
            run = create_forward_fn(desc, warmup=False)
            manager.graphs[desc] = SimpleNamespace(
                replay=lambda run=run, rows=desc.num_reqs: replayed.append(rows) or run(None)
            )
        manager._graphs_captured = True

    monkeypatch.setattr(cudagraph_utils.CudaGraphManager, "capture", capture)
    monkeypatch.setattr(cudagraph_utils.current_platform, "get_global_graph_pool", lambda: None)
    compilation = running.runner.vllm_config.compilation_config
    monkeypatch.setattr(compilation, "cudagraph_capture_sizes", [2, 8])
    monkeypatch.setattr(compilation, "max_cudagraph_capture_size", 8)
    with monkeypatch.context() as patch:
        patch.setattr(speculator, "graphs", speculator.graphs)
        speculator.init_cudagraph_manager(CUDAGraphMode.FULL_AND_PIECEWISE)
        speculator.capture()
        assert_exact(running, target, K)
        finishing = [target.walk(int(target.successor[i]), 4) for i in range(7)]
        lengths = [12 * i + 5 for i in range(7)]
        outputs = running.llm.generate(*prompts(finishing, lengths), use_tqdm=False)
    assert [len(o.outputs[0].token_ids) for o in outputs] == lengths
    assert set(replayed) == {2, 8}


def prompts(texts, lengths):
    from vllm import SamplingParams, TokensPrompt

    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for n in lengths]
    return [TokensPrompt(prompt_token_ids=text) for text in texts], params


def test_nothing_asks_the_device(served):
    """On the meta device there are no values: whoever asked for one would raise."""
    running, _ = served
    speculator = copy.copy(running.runner.speculator)
    speculator.model = copy.deepcopy(speculator.model).to("meta")
    lm_head = speculator.model.lm_head
    # vLLM's own product for CPUs has no meta kernel.
    lm_head.cpu_linear = lambda x, weight, bias: x.new_empty(len(x), lm_head.num_embeddings_per_partition)
    for name, tensor in tensors(speculator).items():
        setattr(speculator, name, tensor.to("meta"))
    rows, requests, slots = 9, 3, speculator.max_num_reqs

    def meta(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    batch = SimpleNamespace(
        num_reqs=requests, idx_mapping=meta(requests), query_start_loc=meta(slots + 1), input_ids=meta(rows),
        positions=meta(rows), req_ids=["a", "b", "c"],
    )  # fmt: skip
    hidden = meta(rows, speculator.hidden_size, dtype=torch.float32)
    states = meta(slots, dtype=torch.float32), meta(slots, dtype=torch.int64)
    drafts = speculator.propose(
        batch, None, None, hidden, None, meta(requests), meta(requests), meta(slots, 1), meta(slots), *states
    )
    assert (drafts.shape, drafts.device.type) == ((requests, K), "meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        drafts.tolist()


def test_memory_is_profiled_before_there_are_graphs(served):
    """vLLM's first run is a dummy one, of all the requests that fit."""
    running, _ = served
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.runner.speculator, "graphs", None)
        running.runner.profile_run()


def test_fewer_drafts_on_demand(served):
    """Dynamic speculation asks for fewer from step to step, down to none."""
    running, target = served
    speculator, propose = running.runner.speculator, running.runner.speculator.propose
    with pytest.MonkeyPatch.context() as patch:
        asked: list[int] = []

        def fewer(*args, **kwargs):
            asked.append(wanted := (2, 0, 4)[len(asked) % 3])
            drafts = propose(*args, **{**kwargs, "num_speculative_tokens": wanted})
            assert wanted or bool((drafts == -1).all())
            return propose(*args, **kwargs)

        patch.setattr(speculator, "propose", fewer)
        assert_exact(Engine(running.llm), target, K)
    assert set(asked) == {0, 2, 4}
