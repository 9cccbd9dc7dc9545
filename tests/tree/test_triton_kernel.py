"""The Triton kernel under Triton's interpreter against the reference, and compiled for GPUs that are not here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .kernel_cases import error


@pytest.mark.v2_only(quick=True)
@pytest.mark.parametrize("merged", [False, True], ids=["alone", "merged"])
def test_the_kernel_equals_the_reference(merged: bool) -> None:
    assert all(error(seed, merged) < 1e-5 for seed in range(12))


@pytest.mark.v2_only
@pytest.mark.parametrize("merged", [False, True], ids=["alone", "merged"])
def test_the_kernel_equals_the_reference_in_many_cases(merged: bool) -> None:
    assert all(error(seed, merged) < 1e-5 for seed in range(12, 230))


@pytest.mark.v2_only(quick=True)
def test_a_key_too_few_is_noticed() -> None:
    assert error(2, forgotten=True) > 1e-3


@pytest.mark.v2_only(quick=True)
def test_half_precision_is_as_exact_as_its_keys() -> None:
    assert error(5, dtype=torch.float16) < 4e-3


def compiled(capability: int, dtype: str, merged: bool, sinks: bool, window: bool, head_dim: int, group: int) -> Any:
    """The kernel, compiled for a GPU of this compute capability; none needs to be there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vllm_eagle_plugin.tree.attention import triton_kernel

    names = triton_kernel._kernel.arg_names
    types = dict.fromkeys(names, "i32") | dict.fromkeys(("seen", "contexts", "counts", "firsts"), "*i64")
    types |= dict.fromkeys(("output", "query", "cache", "context_output"), f"*{dtype}") | {"blocks": "*i32"}
    types |= dict.fromkeys(("sinks", "context_log_sum"), "*fp32") | dict.fromkeys(("scale", "soft_cap"), "fp32")
    fixed: dict[str, Any] = {**triton_kernel.shapes(head_dim, group, 32, 17, 4 if dtype == "fp32" else 2)}
    fixed |= {"WINDOW": window, "SOFT_CAP": window, **({} if sinks else {"sinks": None})}
    fixed |= {} if merged else {"context_output": None, "context_log_sum": None}
    types |= dict.fromkeys(fixed, "constexpr")
    aligned = [name for name in names if types[name][0] == "*" or name.endswith(("_row", "_head", "_block", "_slot"))]
    source = ASTSource(
        triton_kernel._kernel,
        types,
        {(names.index(name),): value for name, value in fixed.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    ("capability", "dtype", "merged", "sinks", "window", "head_dim", "group"),
    [
        (90, "bf16", True, False, False, 128, 4),
        pytest.param(90, "bf16", False, True, True, 128, 8, marks=pytest.mark.extended),
        pytest.param(80, "fp16", True, True, False, 64, 4, marks=pytest.mark.extended),
        pytest.param(80, "fp32", False, False, True, 80, 1, marks=pytest.mark.extended),
        pytest.param(100, "bf16", False, False, False, 256, 2, marks=pytest.mark.extended),
    ],
)
def test_the_kernel_compiles(
    capability: int, dtype: str, merged: bool, sinks: bool, window: bool, head_dim: int, group: int
) -> None:
    kernel = compiled(capability, dtype, merged, sinks, window, head_dim, group)
    # What a block of threads may have where there is least of it (compute capability 8.6 and 8.9).
    assert kernel.asm["cubin"]
    assert kernel.metadata.shared <= 99 * 1024
