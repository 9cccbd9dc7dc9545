"""Synthetic acceptance on CPU, against vLLM's own kernel in C++."""

from __future__ import annotations

import types

import pytest
import torch

from vllm_eagle_plugin.compat.synthetic import _hook_greedy_rejection, synthetic_targets


def test_accepts_at_the_given_rates() -> None:
    """[B] requests with 1 to 3 drafts each; position i is accepted with the i-th rate, right or not."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 4, (4000,), generator=generator)
    ends = counts.cumsum(0).int()
    total = int(ends[-1])
    drafts = torch.randint(0, 5, (total,), generator=generator).int()
    targets = torch.randint(0, 5, (total,), generator=generator)
    uniform = torch.rand(total, generator=generator, dtype=torch.float64)
    rates = torch.tensor([0.9, 0.5, 0.1])
    agreed = synthetic_targets(ends, drafts, targets, uniform, rates) == drafts
    positions = torch.cat([torch.arange(int(n)) for n in counts])
    for position, rate in enumerate(rates.tolist()):
        assert agreed[positions == position].float().mean() == pytest.approx(rate, abs=0.03)


@pytest.mark.engine
def test_through_the_stock_kernel() -> None:
    import vllm._custom_ops  # noqa: F401  (loads the kernels)
    from vllm.utils import cpu_triton_utils

    module = types.SimpleNamespace(
        _rejection_greedy_sample_kernel_impl=cpu_triton_utils._rejection_greedy_sample_kernel_impl
    )
    _hook_greedy_rejection(module)
    ends, drafts = torch.tensor([3, 5], dtype=torch.int32), torch.tensor([5, 6, 7, 8, 9], dtype=torch.int32)
    targets, bonus = torch.tensor([5, 6, 7, 1, 9]), torch.tensor([[3], [4]], dtype=torch.int32)

    def sample(uniform: list[float], synthetic: bool) -> list[list[int]]:
        output = torch.full((2, 4), -1, dtype=torch.int32)
        numbers = torch.tensor(uniform, dtype=torch.float64)
        rates = torch.tensor([0.5, 0.5, 0.5])
        module._rejection_greedy_sample_kernel_impl(
            output, ends, drafts, targets, bonus, None, 3, numbers, rates, SYNTHETIC_MODE=synthetic
        )
        return output.tolist()

    assert sample([0.1] * 5, synthetic=False) == [[5, 6, 7, 3], [1, -1, -1, -1]], "vLLM's own, untouched"
    assert sample([0.1] * 5, synthetic=True) == [[5, 6, 7, 3], [8, 9, 4, -1]]
    first, second = sample([0.1, 0.9, 0.1, 0.1, 0.9], synthetic=True)
    assert first[0] == 5
    assert first[1] != 6, "right, but rejected"
    assert first[2:] == [-1, -1]
    assert second[0] == 8
    assert second[1] != 9
