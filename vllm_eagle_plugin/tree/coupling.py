"""Drafting with the very noise that the target will be sampled with.

A sampled token is the argmax of the target's logits plus noise, and the noise of a request's next samples is known
before they are drawn: its generator says it. So a head that adds the same noise to its own logits drafts what the
target will choose, wherever the two agree on little more than the choice itself; one that drafts what is likeliest
is right only when the likeliest happens to be drawn. What is emitted is the target's own sample as before, drawn
with noise that no earlier token depends on: the drafts have no say in it. (Daliri, Musco and Suresh 2024, "Coupling
without communication and drafter-invariant speculative decoding".)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..compat.sampler_noise import Noise, foretold

logger = logging.getLogger("vllm.eagle_plugin")


class Draw(NamedTuple):
    """A sample to come."""

    #: [V] Gumbel noise.
    noise: Tensor
    #: State of the generator that draws it, before and after.
    before: Tensor
    after: Tensor


class Coupling:
    """The generators of requests that sample, and what they will draw next."""

    def __init__(self, noise: Noise, vocabulary: int, device: torch.device, seed: int):
        """noise: of vLLM's sampler. seed: of the generators of requests without a seed of their own."""
        self._noise, self._size, self._device = noise, vocabulary, device
        self._own: dict[str, torch.Generator] = {}
        self._draws: dict[str, list[Draw]] = {}
        self._ahead = torch.Generator(device)
        # One of its own: ranks that sample the same batch alike must agree on every request's noise.
        self._seeds = torch.Generator().manual_seed(seed)

    @classmethod
    def with_sampler(cls, sampler: Any, vocabulary: int, device: torch.device, seed: int) -> Coupling | None:
        """With vLLM's sampler; None where its noise cannot be foretold."""
        noise = foretold(sampler, vocabulary, device)
        if noise is None:
            logger.info("Drafting without the noise that this vLLM samples with: it is made in a way not known here.")
            return None
        return cls(noise, vocabulary, device, seed)

    def generators(self, batch: Any, discarded: Any) -> dict[int, torch.Generator]:
        """What the requests of a V1 runner's batch draw from, by their index; discarded [B] bool: what is sampled for
        them is thrown away. Those that are missing draw nothing, or from vLLM's global noise."""
        if batch.sampling_metadata.all_greedy:
            return batch.generators
        sampled = (batch.temperature_cpu[: batch.num_reqs] > 0) & ~discarded[: batch.num_reqs]
        own = {i: self.generator(batch.req_ids[i]) for i in sampled.nonzero()[0].tolist()}
        return own | batch.generators

    def generator(self, request: str) -> torch.Generator:
        """What a request without a seed of its own draws from."""
        if request not in self._own:
            seed = int(torch.randint(2**62, (1,), generator=self._seeds))
            self._own[request] = torch.Generator(self._device).manual_seed(seed)
        return self._own[request]

    def noise(self, request: str, generator: torch.Generator, draw: int) -> Tensor:
        """[V] noise of a request's next sample but `draw`; its generator stays as it is."""
        state, known = generator.get_state(), self._draws.setdefault(request, [])
        # What was drawn since is over. A generator that was used otherwise is at none of these states.
        while known and not torch.equal(known[0].before, state):
            del known[0]
        while len(known) <= draw:
            before = known[-1].after if known else state
            self._ahead.set_state(before)
            known.append(Draw(self._noise(self._ahead, self._size), before, self._ahead.get_state()))
        return known[draw].noise

    def forget(self, request: str) -> None:
        """A request has ended."""
        self._own.pop(request, None)
        self._draws.pop(request, None)


class Coupled:
    """A head's logits with the noise of what will be sampled, in one step's batch."""

    def __init__(
        self,
        coupling: Coupling | None,
        requests: Sequence[str],
        temperatures: Sequence[float],
        generators: Mapping[int, torch.Generator],
        ids: Tensor | None,
    ):
        """requests, temperatures: of the batch. generators: of the requests that sample, by their index in it; none
        without a coupling. ids [Vd]: the target's id of each token that the head drafts; None: its own."""
        self._coupling, self._requests, self._ids = coupling, requests, ids
        self._temperatures, self._generators = temperatures, generators

    def __call__(self, logits: Tensor, draw: int) -> Tensor:
        """Logits [B, ..., Vd] as the head has them for each request's next sample but `draw`.

        Of a request that samples, perturbed: their softmax says how sure the head is that a token is their argmax for
        the target too, whose logits differ. Sharper or flatter ones (0.4 to 1.6 times) made worse trees.
        """
        if self._coupling is None or not self._generators:
            return logits
        scores = logits.float().clone()
        for index, generator in self._generators.items():
            noise = self._coupling.noise(self._requests[index], generator, draw)
            scores[index] /= self._temperatures[index]
            scores[index] += noise if self._ids is None else noise[self._ids]
        return scores
