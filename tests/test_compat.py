"""vLLM versions that we do not know: heads are refused with the versions named, everything else serves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import vllm_eagle_plugin
from vllm_eagle_plugin.compat import hooks, problems, proposer, registration, tree_runner, versions
from vllm_eagle_plugin.compat.cpu_launchers import connect_launchers
from vllm_eagle_plugin.compat.cpu_sampler import replace_kernel
from vllm_eagle_plugin.compat.symbols import CHAINS_V1, Symbol
from vllm_eagle_plugin.errors import HeadError
from vllm_eagle_plugin.reference import build_reference

from .cases import CASES
from .front_end import assert_refused, front_end
from .known_answer import save_head

METHODS = {symbol.name.removeprefix("EagleProposer."): lambda self, *args: None for symbol in CHAINS_V1}


@pytest.fixture
def head(head_folder) -> Path:
    return save_head(build_reference(CASES["feature"]()), head_folder)


@pytest.fixture
def fresh(monkeypatch) -> pytest.MonkeyPatch:
    """The plugin as in a process that has not yet called `register`; vLLM as nobody has hooked it."""
    from vllm.config.speculative import SpeculativeConfig

    vllm_eagle_plugin.register()
    monkeypatch.setattr(SpeculativeConfig, "__post_init__", SpeculativeConfig.__post_init__.__wrapped__)
    monkeypatch.setattr(registration, "_installed", False)
    monkeypatch.setattr(problems, "_problem", None)
    return monkeypatch


def assert_only_heads_are_refused(what: tuple[str, ...], head: Path, target: Path) -> None:
    vllm_eagle_plugin.register()  # never raises
    assert front_end(target, None).model_config.model == str(target)
    assert front_end(target, None).speculative_config is None
    with pytest.raises(HeadError) as caught:
        problems.require()
    found = " ".join(versions.vllm_distribution() or ())
    for part in (*what, found, f"its tests ran on {', '.join(versions.TESTED)}", "Install one of these"):
        assert part in str(caught.value)
    assert_refused((*what, found), target, head)


def test_old_vllm(fresh, head, targets):
    fresh.setattr(versions, "vllm_distribution", lambda: ("vllm", "0.20.0"))
    assert_only_heads_are_refused(("vllm 0.20.0 is too old", "0.29 to 0.33"), head, targets().folder)


def test_vllm_of_no_readable_version(fresh, head, targets):
    fresh.setattr(versions, "vllm_distribution", lambda: ("vllm", "dev"))
    assert_only_heads_are_refused(("ValueError", "vllm dev"), head, targets().folder)


def test_vllm_without_a_method_we_need(fresh, head, targets):
    from vllm.v1.spec_decode.eagle import EagleProposer

    fresh.delattr(EagleProposer, hooks.MARK, raising=False)
    fresh.setattr(proposer, "CHAINS_V1", (*CHAINS_V1, Symbol("vllm.v1.spec_decode.eagle", "EagleProposer.fly")))
    assert_only_heads_are_refused(("vllm.v1.spec_decode.eagle has no EagleProposer.fly",), head, targets().folder)


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        (type("P", (), {}), "has no EagleProposer.load_model; .* has no EagleProposer.propose"),
        (type("P", (), METHODS | {"__init__": lambda self, device: None}), r"EagleProposer.__init__ takes device; "),
        (
            type("P", (), METHODS | {"propose": lambda self, num_speculative_tokens, sampling_metadata: None}),
            "EagleProposer.propose does not take target_token_ids, .* common_attn_metadata",
        ),
    ],
    ids=["methods", "constructor", "keywords"],
)  # fmt: skip
def test_proposers_of_another_shape(fresh, shape, what):
    module = SimpleNamespace(EagleProposer=shape)
    problems.guarded(proposer.hook_eagle_proposer, module)
    with pytest.raises(HeadError, match=what):
        problems.require()
    assert not hasattr(shape, hooks.MARK)


def test_newer_vllm_only_warns(fresh, head, targets):
    warnings: list[str] = []
    fresh.setattr(versions, "vllm_distribution", lambda: ("vllm", "0.99.1"))
    fresh.setattr(problems.logger, "warning", lambda text, *values: warnings.append(text % values))
    vllm_eagle_plugin.register()
    problems.require()
    (warning,) = warnings
    assert "not compared with vllm 0.99.1 (newest known: 0.33)" in warning
    assert front_end(targets().folder, head).speculative_config.method == "eagle"


def test_runners_of_another_shape():
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    tree_runner.require_tree_runner(CPUModelRunner)
    lacking = {name: getattr(CPUModelRunner, name) for name in tree_runner.RUNNER_METHODS if name != "_sample"}
    with pytest.raises(HeadError, match=r"R has no _sample, .*its tests ran on 0\.3"):
        tree_runner.require_tree_runner(type("R", (), lacking))
    other = {**lacking, "_sample": lambda self, logits, metadata: None}
    with pytest.raises(HeadError, match=r"R\._sample takes logits, metadata, not logits, spec_decode_metadata"):
        tree_runner.require_tree_runner(type("R", (), other))


def test_runner_without_something_we_read():
    made = SimpleNamespace(**dict.fromkeys(set(tree_runner.RUNNER_ATTRIBUTES) - {"positions", "requests"}))
    with pytest.raises(HeadError, match="model runner has no positions, requests"):
        tree_runner.require_attributes(made)


def test_kernels_are_replaced_where_they_are_called():
    """vLLM 0.30 calls its CPU stand-ins through wrappers made when their module was; later ones by name."""

    def stock() -> str:
        return "stock"

    module = SimpleNamespace(_expand=stock, expand=SimpleNamespace(func=stock), other=SimpleNamespace(func=len))
    replace_kernel(module, "_expand", lambda: "ours")
    assert (module._expand(), module.expand.func(), module.other.func) == ("ours", "ours", len)


@pytest.mark.parametrize("registry", [False, True], ids=["0.30", "later"])
def test_launchers_get_their_stand_ins_where_vllm_does_not_see_to_it(registry, monkeypatch):
    from vllm.utils import cpu_triton_utils

    def some_kernel(output_ptr, stride, SIZE) -> None:
        """Written for Triton, which is not there."""

    done: list[tuple[int, ...]] = []
    stand_in = SimpleNamespace(func=lambda *given: done.append(given))
    monkeypatch.setattr(cpu_triton_utils, "some_kernel", stand_in, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: registry or None)
    compiled = SimpleNamespace(arg_names=())
    module = SimpleNamespace(_some=SimpleNamespace(kernel=some_kernel), _other=SimpleNamespace(kernel=compiled), size=3)
    connect_launchers(module)
    assert module._other.kernel is compiled
    if registry:
        assert module._some.kernel is some_kernel
    else:
        assert module._some.kernel.arg_names == ("output_ptr", "stride", "SIZE")
        module._some.kernel[(1,)](SIZE=3, output_ptr=1, stride=2)
        assert done == [(1, 2, 3)]
