"""Hidden states as vLLM hands them over, against those the trainer computes."""

from __future__ import annotations

import pytest
import torch
from vllm_eagle_plugin.training.state_rates import engine_states, open_engine
from vllm_eagle_plugin.training.teacher import Teacher

from vllm_eagle_plugin.targets.target import read_target

pytestmark = pytest.mark.engine


def test_vllm_hands_over_what_the_trainer_computes(world):
    """`extract_hidden_states` in fp32: the same layers by the same count, position by position."""
    layers = [1, 3, 5]
    prompts = [world.target.walk(2, 20), world.target.walk(7, 33)]
    teacher = Teacher(read_target(str(world.target.folder)), layers, torch.float32, torch.device("cpu"))
    with open_engine(str(world.target.folder), layers, "float32", max_model_len=128) as llm:
        for prompt in prompts:
            (theirs,) = engine_states(llm, [prompt])
            ours = teacher(torch.tensor([prompt])).hidden[0]
            assert theirs.shape == ours.shape
            assert torch.allclose(theirs, ours, atol=1e-4 * float(ours.abs().max()))
            shifted = theirs.view(len(prompt), 3, -1)[:, [1, 2, 0]].flatten(1)
            assert not torch.allclose(shifted, ours, atol=1e-2 * float(ours.abs().max())), "or any layer would do"
