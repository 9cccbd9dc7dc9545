"""EAGLE draft heads for vLLM: the architectures and proposers that stock vLLM lacks.

vLLM calls `register` through the `vllm.general_plugins` entry point in every one of its processes.
"""

from typing import Any

__version__ = "0.1.0"

#: Draft architectures and where they live; imported by vLLM only when a head asks for one.
ARCHITECTURES = {
    "EagleAttentionFreeForCausalLM": "vllm_eagle_plugin.serving.models.attention_free:EagleAttentionFreeForCausalLM",
    "EagleTransformerForCausalLM": "vllm_eagle_plugin.serving.models.eagle:EagleTransformerForCausalLM",
    "Eagle3TransformerForCausalLM": "vllm_eagle_plugin.serving.models.eagle3:Eagle3TransformerForCausalLM",
}

#: Functions that say which class is to stand in for the proposer of vLLM's V1 runner, from the most special: each takes
#: a `VllmConfig`, and the first answer that is not None counts.
PROPOSERS = ("vllm_eagle_plugin.tree:proposer_class", "vllm_eagle_plugin.serving.proposer_v1:proposer_class")


def __getattr__(name: str) -> Any:
    """`TreeWorker`, for vLLM's `--worker-cls`; made for the platform it finds, when asked for."""
    if name == "TreeWorker":
        from .tree.worker import tree_worker

        return tree_worker()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Make our heads known to the vLLM of this process. Idempotent; never raises.

    What goes wrong here is kept and raised by `compat.problems.require` when a head of ours is asked for, so that
    an unsupported vLLM still serves every other model.
    """
    from .compat.registration import install

    install()
