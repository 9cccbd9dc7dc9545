"""vLLM 0.30 on a CPU: what launches the kernels of speculation, put together with the CPU stand-ins for them."""

from __future__ import annotations

import importlib.util
import inspect
from types import ModuleType
from typing import Any


class StandIn:
    """Takes what a launcher passes by the names of its Triton kernel; calls the stand-in with it in that order."""

    def __init__(self, kernel: Any, wrapper: Any) -> None:
        self.arg_names = tuple(inspect.signature(kernel).parameters)
        self._wrapper = wrapper

    def __getitem__(self, grid: Any) -> Any:
        return self._launch

    def _launch(self, **given: Any) -> None:
        self._wrapper.func(*(given[name] for name in self.arg_names if name in given))


def connect_launchers(module: ModuleType) -> None:
    """Give the launchers in one of vLLM 0.30's modules their CPU stand-ins.

    That version puts the stand-ins in the place of the module's Triton kernels, but most launchers keep the kernel they
    were made with, and on a CPU any speculation ends with "Cannot inspect kernel parameters". From 0.31 on a registry
    of vLLM's own (`vllm.triton_utils.dispatcher`) reaches them.
    """
    if importlib.util.find_spec("vllm.triton_utils.dispatcher") is not None:
        return
    for launcher in vars(module).values():
        kernel = getattr(launcher, "__dict__", {}).get("kernel")
        if inspect.isfunction(kernel):  # not a compiled one: Triton is not there
            from vllm.utils import cpu_triton_utils

            if wrapper := getattr(cpu_triton_utils, kernel.__name__, None):
                launcher.kernel = StandIn(kernel, wrapper)
