"""Proposers that draft trees: the chain proposers' first pass, then level after level of beams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from ..serving.proposer_v1 import AttentionFreeProposer, HeadProposer, sampled_rows
from . import observe
from .backlog import Backlog, Unread
from .old_attention import MaskedRows, attach
from .old_grow import Beams, Growth
from .planner import Plan, Planner
from .runner import TreeRunner, require_runner
from .vocabulary import DraftVocabulary

if TYPE_CHECKING:
    Base = HeadProposer
else:
    Base = object


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
        """Drafts of each request, parents first; the trees they form are left with the runner."""
        planner, clock = self.planner, self._runner.clock
        plan, self.plan = self.plan or planner.plan(self._runner), None
        clock.start()
        self.catch_up(plan, inputs)
        clock.observe()  # not what a first pass takes
        clock.start()
        drafts = self._drafts(plan, inputs)
        if any(plan.trials) and [*plan.trials] == [*plan.levels]:
            clock.observe_trial(planner.costs)
        return drafts

    def _drafts(self, plan: Plan, inputs: dict[str, Any]) -> list[list[int]]:
        planner, batch, clock = self.planner, self._runner.input_batch, self._runner.clock
        if planner.shape.kind == "chain" and plan.depth and not observe.observers:
            # The chain proposer's own loop: of what the head says only its first choices are wanted.
            drafted = super().draft(plan.depth, **inputs).tolist()
            clock.observe_chain(planner.costs, len(drafted), plan.depth)
            return [row[:level] for row, level in zip(drafted, plan.levels, strict=True)]
        root = self.root(plan.depth > 0, **inputs)
        if root is None:
            clock.observe()
            return [[] for _ in batch.req_ids]
        scorer = planner.scorer(batch.req_ids)
        growth = Growth(planner.shape, len(batch.req_ids), plan.depth, scorer, self.vocabulary.ids)
        coupled = self._runner.coupled(self.vocabulary.ids)
        growth.start(coupled(root.logits, 0))
        clock.observe(planner.costs.first, len(batch.req_ids))
        hidden = root.hidden[:, None]
        while planner.goes_on(growth, plan) and (beams := growth.beams()) is not None:
            clock.start()
            rows = torch.arange(len(hidden), device=hidden.device)[:, None]
            logits, hidden = self.level(beams, hidden[rows, beams.sources])
            growth.extend(coupled(logits.view(*beams.tokens.shape, -1), beams.depth))
            hidden = hidden.view(*beams.tokens.shape, -1)
            clock.observe(planner.costs.level, beams.tokens.numel())
        trees = planner.choose(growth, plan, batch.req_ids)
        self._runner.trees.update(zip(batch.req_ids, trees, strict=True))
        if observe.observers:
            observe.drafted(batch.req_ids, trees, growth.candidates())
        return [list(tree.tokens) for tree in trees]

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
        if self.backlog.rows + sum(runner.sampled) > self.max_num_tokens:
            return False  # the head must read now: later there would be more than a pass can take
        self.plan = None
        aux = state.aux_hidden_states if runner.use_aux_hidden_state_outputs else None
        starts = runner.query_start_loc.np.tolist()
        read = starts[len(runner.sampled)]
        hidden = torch.cat([states[:read] for states in aux or [state.hidden_states]], -1)
        ids, positions = runner.input_ids.gpu[:read].tolist(), runner.positions[:read].tolist()
        for request, start, sampled in zip(runner.input_batch.req_ids, starts, runner.sampled, strict=False):
            own = slice(start, start + sampled)
            self.backlog.add(request, Unread(ids[own], positions[start], hidden[own]))
        return True

    def forget(self, request: str) -> None:
        super().forget(request)
        self.backlog.drop(request)

    def catch_up(self, plan: Plan, inputs: dict[str, Any]) -> None:
        if not self.backlog.rows:
            return
        asleep = self._asleep(plan, inputs)
        unread = self.backlog.take(self._runner.input_batch.req_ids, self.block_size, inputs, set(asleep))
        if unread:
            HeadProposer.draft(self, 0, **unread)
        for request, more in asleep.items():
            self.backlog.add(request, more)

    def _asleep(self, plan: Plan, inputs: dict[str, Any]) -> dict[str, Unread]:
        """Requests that draft nothing and have missed tokens already, and what they miss in this step: the head runs
        over that, but without what came before."""
        starts, found = inputs["common_attn_metadata"].query_start_loc_cpu.tolist(), {}
        for index, (request, level) in enumerate(zip(self._runner.input_batch.req_ids, plan.levels, strict=True)):
            row = starts[index]
            position = int(inputs["target_positions"][row])
            # More rows than one are of a prompt, read again after a preemption: that is read in full.
            if level == 0 and starts[index + 1] == row + 1 and self.backlog.ends(request) == position:
                token, hidden = int(inputs["target_token_ids"][row]), inputs["target_hidden_states"][row : row + 1]
                found[request] = Unread([token], position, hidden.clone())
        return found if self.backlog.rows + len(found) <= self.max_num_tokens else {}

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
        rows, tail = batch * k, beams.visible.shape[-1]
        slots = self._slots(tail - k, k)
        metadata = self._metadata(slots, batch, k, tail)
        depths = self._depths(beams)
        if k > 1 or not beams.visible.all():  # else a chain, which needs no mask
            masked = [
                MaskedRows(i, i * k, base, visible, depths)
                for i, (base, visible) in enumerate(zip(self._base.tolist(), beams.visible, strict=True))
            ]
            for group in {id(m): m for m in metadata.values()}.values():
                attach(group, masked, whole_batch=True)
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

    def _depths(self, beams: Beams) -> Tensor:
        """[tail] position of each drafted key, counted from the first behind the request's own."""
        if beams.depth == 1:
            self._key_depths = beams.tokens.new_empty(0)
        self._key_depths = torch.cat(
            [self._key_depths, beams.tokens.new_full((beams.tokens.shape[1],), beams.depth - 1)]
        )
        return self._key_depths

    def _slots(self, before: int, k: int) -> Tensor:
        """[B * k] KV slots of a level's beams: behind the request's keys and those of the levels before."""
        at = self._base[:, None] + before + torch.arange(k, device=self._base.device)
        blocks = self._blocks.gather(1, (at // self.block_size).to(torch.int64)).long()
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
