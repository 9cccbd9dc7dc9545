"""Triton's interpreter as a CPU backend, good enough for vLLM's kernels.

The interpreter runs each kernel in numpy on the CPU tensors' own memory. vLLM only asks whether a backend for CPUs
is registered; two gaps of the interpreter itself are closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def stand_in() -> None:
    """Call before vLLM is imported, with TRITON_INTERPRET=1 in the environment."""
    from triton.backends import Backend, backends

    backends.setdefault("cpu", Backend(compiler=_Compiler, driver=_Driver))
    _take_masks_of_any_type()
    _define_libdevice()


class _Driver:
    """What vLLM and Triton ask a driver for before they launch a kernel."""

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cpu")

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cpu", 0, 0)


class _Compiler:
    """Nothing is compiled."""

    @staticmethod
    def supports_target(target: Any) -> bool:
        return False


def _take_masks_of_any_type() -> None:
    """The compiler takes masks of any integer type (a constexpr bool, say), the interpreter only boolean tensors."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def boolean(mask: Any, pointers: Any) -> Any:
        data = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
        return TensorHandle(np.ascontiguousarray(data), tl.int1)

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        return load(self, pointers, boolean(mask, pointers), *rest)

    def masked_store(self: Any, pointers: Any, values: Any, mask: Any, *rest: Any) -> Any:
        return store(self, pointers, values, boolean(mask, pointers), *rest)

    InterpreterBuilder.create_masked_load = masked_load
    InterpreterBuilder.create_masked_store = masked_store


def _define_libdevice() -> None:
    """libdevice is external code, for which the interpreter has nothing: numpy computes it."""
    from triton.language.extra import libdevice

    for name in ("log1p", "expm1", "tanh", "exp", "log"):
        setattr(libdevice, name, _elementwise(getattr(np, name)))


def _elementwise(function: Callable[[Any], Any]) -> Callable[..., Any]:
    def call(x: Any, *args: Any, **kwargs: Any) -> Any:
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        with np.errstate(all="ignore"):
            data = function(x.handle.data).astype(x.handle.data.dtype)
        return tl.tensor(TensorHandle(data, x.handle.dtype), x.type)

    return call
