"""Closed-form heads: random weights in every part, one matrix solved so that every draft is right.

Because the solved matrix compensates for all the rest, leaving out or changing any other part (a bias,
a norm, the column order, an aux layer, the feedback) makes the drafts wrong.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

from vllm_eagle_plugin.configs import AttentionFreeConfig, Eagle3Config, HeadConfig, TransformerHeadConfig
from vllm_eagle_plugin.reference import ReferenceHead, build_reference, draft_chain, unroll
from vllm_eagle_plugin.reference.layers import Attention
from vllm_eagle_plugin.reference.memory import ChainMemory

from .target import Target

STEPS = 4


def known_answer_head(config: HeadConfig, target: Target, steps: int = STEPS, seed: int = 0) -> ReferenceHead:
    """A head of `config` that drafts `steps` tokens of `target`'s language without a mistake."""
    torch.manual_seed(seed)
    head = build_reference(config).eval()
    head.attach_target(target.embedding, target.lm_head)
    with torch.no_grad():
        _randomise(head, config)
        if config.reduced_vocab:
            speaks = target.successor.unique()
            assert len(speaks) == config.draft_vocab, "draft the tokens of the language's cycle"
            head.d2t.copy_(speaks - torch.arange(len(speaks)))
        with mock.patch.object(Attention, "forward", _attend_to_itself):
            if config.own_lm_head:
                _solve_lm_head(head, target, steps)
            elif isinstance(config, AttentionFreeConfig):
                _solve_attention_free(head, target)
            else:
                _solve_last_layer(head, target)
            if isinstance(config, TransformerHeadConfig):
                _make_attention_look_at_itself(head, target, steps)
    _check(head, target, steps)
    return head


def save_head(head: ReferenceHead, folder: Path, provenance: dict | None = None) -> Path:
    """Write the head as this package's checkpoints are."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if provenance is not None:
        head.config.eagle_provenance = provenance
    head.config.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in head.state_dict().items()}, folder / "model.safetensors")
    return folder


def target_states(config: HeadConfig, target: Target, tokens: Tensor) -> Tensor:
    """What the target hands such a head over at tokens [B, T]."""
    aux = isinstance(config, Eagle3Config) and config.use_aux_hidden_state
    return target.hidden(tokens, config.eagle_aux_hidden_state_layer_ids if aux else None)


def _randomise(head: ReferenceHead, config: HeadConfig) -> None:
    for name, parameter in head.named_parameters():
        if name.startswith("body.blocks") and name.endswith("weight") and parameter.dim() == 1:
            parameter.copy_(4 * _signs(parameter.numel()) * (torch.rand_like(parameter) + 0.5))  # outweighs a residual
        elif parameter.dim() == 1 and "norm" in name:
            parameter.copy_(_signs(parameter.numel()) * (torch.rand_like(parameter) + 0.5))
        elif name.endswith("bias"):
            parameter.normal_(std=3)
        elif parameter.dim() == 2:
            parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
    if config.own_embedding:
        head.embed_tokens.weight.normal_()
    if isinstance(config, TransformerHeadConfig) and config.output_norm and not config.own_lm_head:
        head.norm.weight.copy_(_signs(config.hidden_size))  # undone exactly by the solved last layer


def _signs(size: int) -> Tensor:
    return torch.randint(0, 2, (size,)).float() * 2 - 1


def _attend_to_itself(self: Attention, x: Tensor, rope: tuple[Tensor, Tensor], memory: ChainMemory) -> Tensor:
    """Attention in the limit of all weight on the token itself: what the finished head computes."""
    value = self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
    return self.o_proj(value.repeat_interleave(self.heads // self.kv_heads, -2).flatten(-2))


def _pairs(head: ReferenceHead, target: Target) -> tuple[Tensor, Tensor]:
    """Every token with its successor [V, 2], and the target's states at the first [V, 1, *]."""
    tokens = torch.arange(len(target.successor))
    pairs = torch.stack((tokens, target.successor), 1)
    return pairs, target_states(head.config, target, pairs[:, :1])


def _teacher(target: Target, pairs: Tensor, step: int) -> Tensor:
    """The right token after `step` drafts, at every pair [V, 1]."""
    token = pairs[:, 1]
    for _ in range(step + 1):
        token = target.successor[token]
    return token[:, None]


def _solve_lm_head(head: ReferenceHead, target: Target, steps: int) -> None:
    pairs, hidden = _pairs(head, target)
    features, wanted = [], []
    for step, state in enumerate(unroll(head, pairs, hidden, steps, lambda i, _: _teacher(target, pairs, i))):
        features.append(state.features[:, 0])
        right = _teacher(target, pairs, step)[:, 0]
        draft = right if head.d2t is None else torch.searchsorted(target.successor.unique(), right)
        wanted.append(20 * torch.eye(head.config.draft_vocab)[draft])
    bias = head.lm_head.bias if head.config.lm_head_bias else 0
    head.lm_head.weight.copy_((torch.linalg.pinv(torch.cat(features)) @ (torch.cat(wanted) - bias)).T)


def _solve_attention_free(head: ReferenceHead, target: Target) -> None:
    """Without an own lm_head the output must be a hidden state that the target's lm_head reads right."""
    config, body = head.config, head.body
    pairs, hidden = _pairs(head, target)
    read = pairs[:, 0] if config.token_pairing == "same" else pairs[:, 1]
    linear = body.output_projection if config.output_projection else body.blocks[-3]
    seen: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    body(head.embed(read) if config.use_embedding else None, hidden[:, 0])
    hook.remove()
    right = target.successor[pairs[:, 1]]
    if config.output_projection:  # exactly the target's next hidden state, so chains stay exact
        wanted = target.hidden(pairs[:, 1:])[:, 0]
    else:  # ..., ReLU, LayerNorm: a non-negative vector whose normed form the lm_head reads as `right`
        gain = body.blocks[-1].weight
        body.blocks[-1].bias.normal_(std=0.01)
        system = torch.cat((target.lm_head * gain, torch.ones(1, gain.numel())))
        solution = torch.cat((torch.eye(len(right))[right], torch.zeros(len(right), 1)), 1)
        wanted = (torch.linalg.pinv(system) @ solution.T).T
        wanted = wanted - wanted.min() + 0.1
    linear.weight.copy_((torch.linalg.pinv(seen[0]) @ (wanted - linear.bias)).T)


def _solve_last_layer(head: ReferenceHead, target: Target) -> None:
    """Make the last MLP complete the stream to the target's next hidden state (signs of a norm undone)."""
    assert len(target.successor.unique()) == len(target.successor), "needs a language that is one cycle"
    pairs, hidden = _pairs(head, target)
    next_hidden = target.hidden(pairs[:, 1:])
    signs = head.norm.weight if head.config.output_norm else torch.ones(head.config.hidden_size)
    # A chain reads the target's state first and then its own feedback: the solution itself, which for
    # each token is the state that its predecessor's row is solved for.
    fed = next_hidden[torch.argsort(target.successor)]
    if head.config.feedback == "pre_norm":
        fed = fed * signs
    last = head.layers[-1]
    last.mlp.down_proj.weight.zero_()
    activations, streams = [], []
    hooks = [
        last.mlp.down_proj.register_forward_pre_hook(lambda _, args: activations.append(args[0][:, 0])),
        last.mlp.register_forward_hook(lambda m, args, out: biases.append(out[:, 0])),
        last.post_attention_layernorm.register_forward_pre_hook(lambda _, args: streams.append(args[0][:, 0])),
    ]
    biases: list[Tensor] = []
    for state in (head.fuse(hidden), fed):
        head(pairs[:, 1:], state, head.new_memory(torch.zeros(len(pairs), 1, dtype=torch.long)))
    for hook in hooks:
        hook.remove()
    wanted = (next_hidden[:, 0] * signs).repeat(2, 1)
    missing = wanted - torch.cat(streams) - torch.cat(biases)
    last.mlp.down_proj.weight.copy_((torch.linalg.pinv(torch.cat(activations)) @ missing).T)


def _make_attention_look_at_itself(head: ReferenceHead, target: Target, steps: int) -> None:
    """Give every query and key one common direction; RoPE then makes distance 0 win by far.

    Where the head has q/k/v biases or q/k norms, they are what makes it so.
    """
    pairs, hidden = _pairs(head, target)
    inputs: dict[int, list[Tensor]] = {}
    hooks = [
        layer.self_attn.register_forward_pre_hook(lambda m, args: inputs.setdefault(m.layer, []).append(args[0][:, 0]))
        for layer in head.layers
    ]
    list(unroll(head, pairs, hidden, steps, lambda i, _: _teacher(target, pairs, i)))
    for hook in hooks:
        hook.remove()
    strength = 12.0
    for layer in head.layers:
        attention = layer.self_attn
        states = torch.cat(inputs[attention.layer])
        direction = torch.linalg.pinv(states) @ torch.ones(len(states))
        for projection in (attention.q_proj, attention.k_proj):
            if head.config.qkv_bias:
                projection.weight.mul_(1e-3)
                projection.bias.fill_(0.1 if head.config.qk_norm else strength)
            else:
                projection.weight.copy_((0.1 if head.config.qk_norm else strength) * direction)
        if head.config.qk_norm:
            attention.q_norm.weight.fill_(strength)
            attention.k_norm.weight.fill_(strength)


def _check(head: ReferenceHead, target: Target, steps: int) -> None:
    """The finished head, with real attention and in context, drafts without a mistake."""
    for start in range(0, len(target.successor), 5):
        walk = target.walk(int(target.successor[start]), 12 + steps)
        tokens = torch.tensor([walk[:11]])
        drafts = draft_chain(head, tokens, target_states(head.config, target, tokens[:, :-1]), steps)[0]
        for position, chain in enumerate(drafts.tolist()):
            assert chain == walk[position + 2 : position + 2 + steps], f"not exact: {type(head).__name__} {head.config}"
