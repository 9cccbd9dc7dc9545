"""Proposers of vLLM's V1 runner that draft trees: the chain proposers' first pass, then level after level of beams."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from ..serving.proposer_v1 import AttentionFreeProposer, HeadProposer, sampled_rows
from ..serving.proposer_v1 import proposer_class as serving_class
from . import observe
from .attention import attach, drafting
from .backlog import Backlog
from .grow import Beams, grow, select
from .host_v1 import TreeRunner, require_runner
from .plan import Plan, Planner
from .vocabulary import DraftVocabulary

if TYPE_CHECKING:
    Base = HeadProposer
else:
    Base = object


def proposer_class(vllm_config: Any) -> type:
    """The one for the head in `vllm_config`."""
    chains = serving_class(vllm_config)
    return TreeAttentionFreeProposer if chains is AttentionFreeProposer else TreeHeadProposer


class Root(NamedTuple):
    """What a head says at the last verified position of each request of a batch."""

    #: Logits [B, Vd] of the first draft, over what the head can draft.
    logits: Tensor
    #: The state [B, H] that the first beams feed on.
    hidden: Tensor


class TreeDrafting(Base):
    """Mixin over a chain proposer of ours. Subclasses say what the head makes of the root and of beams."""

    _runner: TreeRunner

    def __init__(self, vllm_config: Any, device: torch.device, runner: Any = None) -> None:
        self.planner = Planner(require_runner(runner).drafting)
        #: Of the step that runs, once it is made.
        self.plan: Plan | None = None
        super().__init__(vllm_config, device, runner)

    def load_model(self, target_model: torch.nn.Module) -> None:
        super().load_model(target_model)
        self.vocabulary = DraftVocabulary(self.model)

    def draft(self, num_speculative_tokens: int, **inputs: Any) -> list[list[int]]:
        """Drafts of each request, parents first; what each of them continues is left with the runner."""
        plan, self.plan = self.plan or self._runner.plan(), None
        start = perf_counter()
        self.catch_up(plan, inputs)
        began = perf_counter()
        drafts = self._drafts(plan, inputs)
        self._runner.drafted(plan, began - start, perf_counter() - began)
        return drafts

    def _drafts(self, plan: Plan, inputs: dict[str, Any]) -> list[list[int]]:
        shape, requests = self.planner.shape, self._runner.input_batch.req_ids
        _, depth, beams = plan.largest
        if shape.kind == "chain" and depth and not observe.observers:
            # The chain proposer's own loop: of what the head says only its first choices are wanted.
            drafted = super().draft(depth, **inputs).tolist()
            return [row[: size.levels] for row, size in zip(drafted, plan.sizes, strict=True)]
        root = self.root(depth > 0, **inputs)
        if root is None:
            return [[] for _ in requests]
        coupled, hidden = self._runner.coupled(self.vocabulary.ids), root.hidden[:, None]

        def level(beams: Beams) -> Tensor:
            nonlocal hidden
            logits, hidden = self.level(
                beams, hidden.gather(1, beams.sources[..., None].expand(-1, -1, hidden.shape[-1]))
            )
            hidden = hidden.view(*beams.tokens.shape, -1)
            return coupled(logits.view(*beams.tokens.shape, -1), beams.depth)

        found = grow(coupled(root.logits, 0), level, replace(shape, depth=depth, top_k=beams), self.vocabulary.ids)
        nodes, levels, _ = torch.tensor(plan.sizes, device=hidden.device).T
        chains = torch.tensor(plan.chains, device=hidden.device)
        # Where nodes are chosen by what they are worth, the head's chain has to earn its place too.
        grown = select(found, shape.nodes, nodes, levels, chains, keep_chain=shape.kind != "auto")
        if observe.observers:
            observe.drafted(requests, grown)
        counts, tokens, parents = (t.tolist() for t in (grown.trees.counts, grown.trees.tokens, grown.trees.parents))
        drafts = [row[:count] for row, count in zip(tokens, counts, strict=True)]
        self._runner.proposed.update(zip(requests, zip(drafts, parents, strict=True), strict=True))
        return drafts

    def postpone(self, state: Any) -> bool:
        """Whether a step from which nothing is drafted can do without the head; `state` is the runner's."""
        self.plan = None
        return True

    def forget(self, request: str) -> None:
        """A request has ended."""
        self.planner.forget(request)

    def catch_up(self, plan: Plan, inputs: dict[str, Any]) -> None:
        """Read what the head has missed, in steps that drafted nothing, of requests that draft now."""

    def run_head(self, rows: int) -> Any:
        """The head's output on `rows` rows of whatever its input buffers hold; to measure what it costs."""
        raise NotImplementedError

    def root(self, wanted: bool, **inputs: Any) -> Root | None:
        """The head's first pass over a step's tokens. None if no drafts are wanted; a head with keys and
        values of its own takes the tokens in all the same."""
        raise NotImplementedError

    def level(self, beams: Beams, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B * k, Vd] and states [B * k, H] of beams [B, k] that feed on `hidden` [B, k, H]."""
        raise NotImplementedError


class TreeAttentionFreeProposer(TreeDrafting, AttentionFreeProposer):  # type: ignore[misc]  # what vLLM takes, lists too
    """Trees of heads without attention: a beam is a row."""

    def run_head(self, rows: int) -> Any:
        return self.model(self.input_ids[:rows], None, self.hidden_states[:rows])

    def root(self, wanted: bool, **inputs: Any) -> Root | None:
        if not wanted:
            return None
        last = sampled_rows(inputs["token_indices_to_sample"], inputs["common_attn_metadata"])
        token = inputs["next_token_ids"]
        self._fed = token[:, None]
        features, hidden = self.model(
            inputs["target_token_ids"][last] if self._lagging else token, None, inputs["target_hidden_states"][last]
        )
        return Root(self.vocabulary.logits(features), hidden)

    def level(self, beams: Beams, hidden: Tensor) -> tuple[Tensor, Tensor]:
        # A lagging head reads the token before the one it continues.
        tokens = self._fed.gather(1, beams.sources) if self._lagging else beams.tokens
        self._fed = beams.tokens
        features, hidden = self.model(tokens.flatten(), None, hidden.flatten(0, 1))
        return self.vocabulary.logits(features), hidden


class TreeHeadProposer(TreeDrafting, HeadProposer):
    """Trees of heads with attention: beams write their keys behind the request's, and see their ancestors."""

    def load_model(self, target_model: torch.nn.Module) -> None:
        super().load_model(target_model)
        self.backlog = Backlog()
        self._output: Any = None

        def keep(module: Any, inputs: Any, output: Any) -> None:
            self._output = output

        self.model.register_forward_hook(keep)

    def run_head(self, rows: int) -> Any:
        return self.model(
            input_ids=self.input_ids[:rows],
            positions=self._get_positions(rows),
            hidden_states=self.hidden_states[:rows],
            inputs_embeds=None,
        )

    def postpone(self, state: Any) -> bool:
        runner = self._runner
        if not self.backlog.postpone(runner, state, self.max_num_tokens):
            return False  # the head must read now: later there would be more than a pass can take
        self.plan = None
        return True

    def forget(self, request: str) -> None:
        super().forget(request)
        self.backlog.drop(request)

    def catch_up(self, plan: Plan, inputs: dict[str, Any]) -> None:
        if not self.backlog.rows:
            return
        requests = self._runner.input_batch.req_ids
        asleep = self.backlog.asleep(requests, [s.levels for s in plan.sizes], inputs, self.max_num_tokens)
        unread = self.backlog.take(requests, self.block_size, inputs, set(asleep))
        if unread:
            HeadProposer.draft(self, 0, **unread)
        for request, more in asleep.items():
            self.backlog.add(request, more)

    def root(self, wanted: bool, **inputs: Any) -> Root | None:
        common: CommonAttentionMetadata = inputs["common_attn_metadata"]
        rows = sampled_rows(inputs["token_indices_to_sample"], common).long()
        lengths = common.seq_lens[: common.num_reqs].clone()
        if inputs["num_rejected_tokens_gpu"] is not None:
            lengths -= inputs["num_rejected_tokens_gpu"]
        positions = inputs["target_positions"][rows].clone()
        # vLLM's own first pass, and nothing drafted from it: the distribution is what a tree needs.
        HeadProposer.draft(self, 0, **inputs)
        features, hidden = self._output if isinstance(self._output, tuple) else (self._output, self._output)
        self._output = None
        if not wanted:
            return None
        self._base, self._positions = lengths.long(), positions
        self._blocks = common.block_table_tensor
        return Root(self.vocabulary.logits(features[rows]), hidden[rows])

    def level(self, beams: Beams, hidden: Tensor) -> tuple[Tensor, Tensor]:
        batch, k = beams.tokens.shape
        rows = batch * k
        slots = self._slots(beams.drafted - k, k)
        metadata = self._metadata(slots, batch, k, beams.drafted)
        if k > 1 or beams.drafted > beams.depth:  # else a chain, which needs no mask
            tail = drafting(beams.seen, beams.drafted, self._base)
            for group in {id(m): m for m in metadata.values()}.values():
                attach(group, tail)
        self.input_ids[:rows] = beams.tokens.flatten()
        self._set_positions(rows, (self._positions[:, None] + beams.depth).expand(-1, k).flatten())
        self.hidden_states[:rows] = hidden.flatten(0, 1)
        with set_forward_context(
            metadata,
            self.vllm_config,
            num_tokens=rows,
            cudagraph_runtime_mode=CUDAGraphMode.NONE,
            slot_mapping=self._get_slot_mapping(rows, slots),
        ):
            output = self.run_head(rows)
        features, fed = output if isinstance(output, tuple) else (output, output)
        return self.vocabulary.logits(features[:rows]), fed[:rows]

    def _slots(self, before: int, k: int) -> Tensor:
        """[B * k] KV slots of a level's beams: behind the request's keys and those of the levels before."""
        at = self._base[:, None] + before + torch.arange(k, device=self._base.device)
        blocks = self._blocks.gather(1, at // self.block_size).long()
        return (blocks * self.block_size + at % self.block_size).flatten()

    def _metadata(self, slots: Tensor, batch: int, k: int, tail: int) -> dict[str, Any]:
        starts = torch.arange(batch + 1, dtype=torch.int32, device=slots.device) * k
        lengths = self._base + tail
        common = CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts.cpu(),
            seq_lens=lengths.int(),
            num_reqs=batch,
            num_actual_tokens=batch * k,
            max_query_len=k,
            max_seq_len=int(lengths.max()),
            block_table_tensor=self._blocks,
            slot_mapping=slots,
        )
        return self.build_per_group_and_layer_attn_metadata(common, draft_index=1)[1]
