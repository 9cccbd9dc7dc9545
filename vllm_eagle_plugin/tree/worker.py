"""The worker for `--worker-cls vllm_eagle_plugin.TreeWorker`: vLLM's own, with our runner in it."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from vllm.platforms import current_platform

from ..compat.hooks import replaced
from ..compat.problems import require
from ..compat.tree_runner import require_tree_runner
from ..errors import HeadError
from .check import check_drafting


@cache
def tree_worker() -> type:
    """The worker class of the platform that vLLM found."""
    require()
    if current_platform.is_cpu():
        return _cpu_worker()
    if current_platform.is_cuda():
        return _cuda_worker()
    raise HeadError(
        f"draft trees on the platform {current_platform.device_name!r}",
        "They work on CPUs and on NVIDIA GPUs",
        "Leave --worker-cls and the additional config's `eagle` out to draft chains",
    )


class _TreeWorker:
    """What tree workers of all platforms have in common."""

    model_runner: Any
    #: vLLM's, since it has a second runner.
    use_v2_model_runner = False

    def compile_or_warm_up_model(self) -> Any:
        done = super().compile_or_warm_up_model()  # type: ignore[misc]
        if self.use_v2_model_runner:
            return done
        from .measure import measured_times

        self.model_runner.drafter.planner.use(measured_times(self.model_runner))
        return done

    def drafting_report(self) -> dict[str, Any]:
        """Counters of the drafting since the start, for `collective_rpc`; see `plan.Planner.report`."""
        if self.use_v2_model_runner:
            return self.model_runner.speculator.report()
        return self.model_runner.drafter.planner.report()


def _cpu_worker() -> type:
    from vllm.v1.worker import cpu_worker

    class TreeCPUWorker(_TreeWorker, cpu_worker.CPUWorker):
        """`CPUWorker` whose runner verifies trees."""

        def init_device(self) -> None:
            check_drafting(self.vllm_config)
            module: Any = cpu_worker
            if self.use_v2_model_runner:
                module = importlib.import_module("vllm.v1.worker.cpu.model_runner")
            with replaced(module, "CPUModelRunner", _runner(module.CPUModelRunner, self.use_v2_model_runner)):
                super().init_device()

    return TreeCPUWorker


def _cuda_worker() -> type:
    from vllm.v1.worker.gpu_worker import Worker

    class TreeGPUWorker(_TreeWorker, Worker):
        """`Worker` whose runner verifies trees. Not run on a GPU yet."""

        def _make_model_runner(self) -> Any:
            check_drafting(self.vllm_config)
            v2 = self.use_v2_model_runner
            module = importlib.import_module(f"vllm.v1.worker.{'gpu.model_runner' if v2 else 'gpu_model_runner'}")
            return _runner(module.GPUModelRunner, v2)(self.vllm_config, self.device)

    return TreeGPUWorker


def _runner(base: type, v2: bool) -> type:
    if v2:
        from .host_v2 import TreeRunnerV2

        return type(f"Tree{base.__name__}", (TreeRunnerV2, base), {})
    from .host_v1 import TreeRunner

    require_tree_runner(base)
    return type(f"Tree{base.__name__}", (TreeRunner, base), {})
