"""What the reference modules draft for a text, to hold vLLM's drafts against."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_eagle_plugin.configs import Eagle3Config
from vllm_eagle_plugin.reference import unroll


def public_id(proposal):
    """The request's id as the user sees it; vLLM appends a suffix of its own."""
    return proposal.request.split("-")[0]


@dataclass(frozen=True)
class References:
    """From each position of a text: the drafts, and the token that ties with each of them (else -1), [T][K]."""

    drafts: list[list[int]]
    ties: list[list[int]]

    def __len__(self):
        return len(self.drafts)

    def agree(self, at, drafts):
        """Whether vLLM drafted the same, up to the first tie if that went the other way: all after follows from it."""
        for draft, wanted, tied in zip(drafts, self.drafts[at], self.ties[at], strict=True):
            if draft != wanted:
                return draft == tied
        return True


@torch.inference_mode()
def reference_drafts(head, model, tokens, k=4):
    """Two tokens tie where rounding alone orders them: within 1e-5 of the logits' spread."""
    ids = torch.tensor([tokens])
    states = model(ids[:, :-1], output_hidden_states=True).hidden_states
    aux = isinstance(head.config, Eagle3Config) and head.config.use_aux_hidden_state
    layers = head.config.eagle_aux_hidden_state_layer_ids if aux else [-1]
    drafts, ties = [], []
    for step in unroll(head, ids, torch.cat([states[i] for i in layers], -1), k):
        logits = step.logits[0]
        top = logits.topk(2)
        best, second = top.values.unbind(-1)
        runner_up = top.indices.sum(-1) - logits.argmax(-1)  # the order within an exact tie is not the argmax's
        drafts.append(step.drafts[0])
        ties.append(head.target_ids(runner_up).where(best - second < 1e-5 * logits.std(-1), -1))
    return References(torch.stack(drafts, -1).tolist(), torch.stack(ties, -1).tolist())
