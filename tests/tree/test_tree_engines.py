"""Trees in engines of other kinds: two ranks, compiled, in a process of its own; and where they are refused."""

from __future__ import annotations

import pytest

from vllm_eagle_plugin.errors import UsageError
from vllm_eagle_plugin.tree import WORKER
from vllm_eagle_plugin.tree.config import parse_drafting

from ..cases import CASES
from ..engine import engine
from ..known_answer import known_answer_head, save_head
from ..random_models import heads, random_head, random_target
from ..test_known_answer import continues, walks
from .drafting import VOCAB, prompts, tree_engine

BOTH = {"kind": "static", "branches": [2, 2, 2]}


@pytest.mark.engine
@pytest.mark.extended
@pytest.mark.parametrize("name", ["eagle3-reduced", "feature-reduced"])
@pytest.mark.parametrize("tree", [BOTH, {"kind": "auto"}])
def test_tensor_parallel(name, tree, target_for, head_folder):
    config = CASES[name]()
    target = target_for(config)
    save_head(known_answer_head(config, target), head_folder)
    with tree_engine(
        target.folder, head_folder, 14, {"tree": tree}, tensor_parallel_size=2,
        distributed_executor_backend="mp", max_num_seqs=4,
    ) as running:  # fmt: skip
        outputs = running.generate(walks(target), max_tokens=25)
        counters = running.counters()
    assert all(continues(target, p, o) for p, o in zip(walks(target), outputs, strict=True))
    assert counters.accepted > 0
    if tree is BOTH:
        assert counters.acceptance_length == 4


@pytest.mark.engine
@pytest.mark.extended
def test_compiled(tmp_path):
    model = random_target(tmp_path / "target", VOCAB)
    save_head(random_head(heads(VOCAB)["eagle3"], model), tmp_path / "head")
    asked = prompts(40, 60)
    with engine(tmp_path / "target", enforce_eager=False) as running:
        plain = running.generate(asked, max_tokens=24)
    with tree_engine(
        tmp_path / "target", tmp_path / "head", 16, {"tree": {"kind": "dynamic"}}, enforce_eager=False
    ) as running:
        assert running.generate(asked, max_tokens=24) == plain


CPU_WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"
REFUSED = {
    "worker": ({"eagle": {"tree": "auto"}}, {"worker_cls": CPU_WORKER}, f"--worker-cls {CPU_WORKER}"),
    "scheduling": ({"eagle": {"tree": "auto"}}, {"async_scheduling": True}, "asynchronous scheduling"),
    "nothing asked": ({}, {"worker_cls": WORKER}, "with neither a tree nor adaptive length"),
    "empty section": ({"eagle": {}}, {}, "eagle is {}, with neither"),
    "too long": ({"eagle": {"adaptive": {"maximum": 40}}}, {}, "lengths up to 40"),
    "unknown kind": ({"eagle": {"tree": "bushy"}}, {}, "tree.kind"),
    "unknown key": ({"eagle": {"tree": {"kind": "dynamic", "dept": 3}}}, {}, "tree.dept"),
    "too deep": ({"eagle": {"tree": {"depth": 20}}}, {}, "20 levels"),
    "too many": ({"eagle": {"tree": "auto"}}, {"speculative": {"num_speculative_tokens": 64}}, "At most 63"),
    "too wide": ({"eagle": {"tree": {"depth": 5, "top_k": 9}}}, {}, "top_k at most 4"),
    "no section": ({"eagle": 3}, {}, "eagle"),
    "probabilistic": (
        {"eagle": {"tree": "auto"}},
        {"speculative": {"draft_sample_method": "probabilistic"}},
        "probabilistic",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_loaded(case, target_for, head_folder):
    """One error that ends in a whole command."""
    additional, options, words = REFUSED[case]
    config = CASES["eagle-own-lm-head"]()
    target = target_for(config)
    save_head(known_answer_head(config, target), head_folder)
    with (
        pytest.raises(ValueError, match=r"--additional-config '{\"eagle\": {\"tree\": \"auto\"}}'") as error,
        engine(target.folder, head_folder, 16, additional_config=additional, **options),
    ):
        pass
    assert words in str(error.value)


def test_pipelines_are_refused_before_anything_is_loaded(target_for, head_folder):
    """As with any head on V1, so without a command that would switch trees on."""
    config = CASES["eagle-own-lm-head"]()
    target = target_for(config)
    save_head(known_answer_head(config, target), head_folder)
    options = {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}
    with (
        pytest.raises(ValueError, match=r"pipeline parallelism .* Use tensor parallelism"),
        engine(target.folder, head_folder, 16, additional_config={"eagle": {"tree": "auto"}}, **options),
    ):
        pass


@pytest.mark.parametrize(
    ("eagle", "nodes", "kind", "depth", "top_k"),
    [
        ({"tree": "auto"}, 16, "auto", 5, 4),
        ({"tree": "auto"}, 8, "auto", 5, 2),
        ({"tree": "auto"}, 2, "auto", 2, 2),
        ({"tree": {"kind": "dynamic", "depth": 3}}, 16, "dynamic", 3, 4),
        ({"tree": {"kind": "static", "top_k": 4, "depth": 3}}, 16, "static", 3, 16),
        ({"adaptive": True}, 6, "chain", 6, 1),
    ],
)
def test_defaults_fit_the_number_of_nodes(eagle, nodes, kind, depth, top_k):
    shape = parse_drafting({"eagle": eagle}, nodes).shape
    assert (shape.kind, shape.nodes, shape.depth, shape.top_k) == (kind, nodes, depth, top_k)


def test_auto_trees_can_stop_unless_told_not_to():
    assert parse_drafting({"eagle": {"tree": "auto"}}, 16).adaptive is not None
    assert parse_drafting({"eagle": {"tree": "auto", "adaptive": False}}, 16).adaptive is None
    assert parse_drafting({"eagle": {"tree": {"kind": "dynamic"}}}, 16).adaptive is None
    assert parse_drafting({"other": 1}, 16) is None
    assert parse_drafting({"eagle": {}}, 16) is None
    with pytest.raises(UsageError, match="num_speculative_tokens 4"):
        parse_drafting({"eagle": {"adaptive": {"maximum": 9}}}, 4)
