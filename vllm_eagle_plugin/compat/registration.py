"""What runs in each vLLM process that has the plugin: names are registered, hooks are set."""

from __future__ import annotations

from ..errors import HeadError
from . import versions
from .configs import hook_speculative_config, hook_vllm_config
from .cpu_launchers import connect_launchers
from .cpu_sampler import correct_cpu_expand
from .hooks import when_imported
from .problems import guarded, logger
from .proposer import hook_eagle_proposer
from .speculator import hook_init_speculator
from .versions import SUPPORTED, dotted, version_tuple

_installed = False


def install() -> None:
    """Register and hook. Idempotent; never raises: see `require`."""
    global _installed
    if _installed:
        return
    _installed = True
    # Each on its own: the hook in the config must stand to report what the others found.
    for step in (_check_version, _register_names, hook_speculative_config, hook_vllm_config):
        guarded(step)
    when_imported("vllm.v1.spec_decode.eagle", hook_eagle_proposer)
    for name in ("vllm.v1.worker.gpu.spec_decode", "vllm.v1.worker.gpu.model_runner"):
        when_imported(name, hook_init_speculator)
    when_imported("vllm.utils.cpu_triton_utils", correct_cpu_expand)
    for name in ("vllm.v1.sample.rejection_sampler", "vllm.v1.spec_decode.utils"):
        when_imported(name, connect_launchers)


def _check_version() -> None:
    found = versions.vllm_distribution()
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
            dotted(SUPPORTED[1]),
        )


def _register_names() -> None:
    from vllm.model_executor.models import ModelRegistry

    from .. import ARCHITECTURES
    from ..configs import register_configs

    register_configs()
    for architecture, path in ARCHITECTURES.items():
        if architecture not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(architecture, path)
