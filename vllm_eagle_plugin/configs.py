"""What a draft head is, in explicit flags. Never by producer, and without vLLM.

Three families cover everything we serve:

* `AttentionFreeConfig`: feature regression, embedding MLP ("surgery") and projection heads;
* `EagleConfig`: EAGLE-1/2 (arXiv 2401.15077, 2406.16858), with everything trainers add to it;
* `Eagle3Config`: EAGLE-3 (arXiv 2503.01840) in every variant.

Shapes use: H hidden size of the target, D hidden size of the head, E embedding width, V target
vocabulary, Vd draft vocabulary, A number of aux hidden states. Weights are stored with the
concatenation order [embed, hidden].
"""

from __future__ import annotations

import math
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from .errors import HeadError

#: Keys a config may carry besides its own flags (provenance, and what servers read, `vllm serve HEAD` among it).
EXTRA_KEYS = {
    "eagle_provenance", "eagle_config", "target_layer_count", "num_lookahead_tokens",
    "speculators_config", "speculators_model_type", "transformer_layer_config",
}  # fmt: skip


class HeadConfig(PretrainedConfig):
    """What all heads have in common: where tokens come from and where logits go.

    `hidden_size` is what vLLM sizes its hidden-state buffer with, so for heads that read the target's
    last hidden state it is the target's.
    """

    vocab_size: int = 0
    hidden_size: int = 0
    #: Rows of the head's own lm_head; None means the target's vocabulary.
    draft_vocab_size: int | None = None
    #: False: the target's embedding table is used, True: the checkpoint has `embed_tokens.weight`.
    own_embedding: bool = False
    #: False: the target's lm_head is used, True: the checkpoint has `lm_head.weight`.
    own_lm_head: bool = False
    lm_head_bias: bool = False
    #: Factor on embeddings (Gemma targets: sqrt(H)), if the head was trained with it.
    embed_scale: float = 1.0
    #: Logits are capped to `c * tanh(logits / c)` (Gemma-2), if the head was trained with it.
    logit_softcap: float | None = None
    logit_scale: float = 1.0
    max_position_embeddings: int = 1 << 20
    # What vLLM reads from any text config.
    num_hidden_layers: int = 0
    num_attention_heads: int = 1
    num_key_value_heads: int = 1
    head_dim: int | None = None
    tie_word_embeddings: bool = False

    #: vLLM's speculative `method` for this family, and its architecture name.
    method = ""
    architecture = ""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.architectures = getattr(self, "architectures", None) or [self.architecture]

    @property
    def draft_vocab(self) -> int:
        """Number of tokens the head can draft (Vd)."""
        return self.draft_vocab_size or self.vocab_size

    @property
    def reduced_vocab(self) -> bool:
        """Whether the head drafts from a subset of the target's vocabulary, mapped by `d2t`."""
        return self.draft_vocab != self.vocab_size

    @property
    def lm_head_width(self) -> int:
        """Width of what goes into the lm_head."""
        return self.hidden_size

    @property
    def embed_width(self) -> int:
        """Width of the embedding the head reads (E)."""
        return self.hidden_size

    @property
    def reads_embedding(self) -> bool:
        return True

    @property
    def max_draft_tokens(self) -> int | None:
        """Longest chain the head can draft; None means no limit."""
        return None

    def validate_head(self) -> None:
        """Raise `HeadError` for flags that contradict each other or are unknown."""
        known = _field_names(type(self)) | EXTRA_KEYS
        unknown = sorted(k for k in self.to_dict() if k not in known and not k.startswith("_"))
        if unknown:
            raise HeadError(
                f"config.json of this {self.model_type} head has unknown keys {unknown}",
                "Every key of such a head is a flag that changes what it computes",
                "Remove them, or convert the head again with this version of vllm-eagle-plugin",
            )
        for name in ("vocab_size", "hidden_size"):
            _positive(self, name)
        if self.draft_vocab_size is not None:
            _positive(self, "draft_vocab_size")
            if self.draft_vocab_size > self.vocab_size:
                raise HeadError(
                    f"draft_vocab_size is {self.draft_vocab_size}, larger than vocab_size {self.vocab_size}",
                    "A draft vocabulary is a subset of the target's",
                )
        if self.reduced_vocab and not self.own_lm_head:
            raise HeadError(
                f"draft_vocab_size is {self.draft_vocab} of {self.vocab_size}, but own_lm_head is false",
                "A reduced draft vocabulary needs its own lm_head and d2t",
            )
        if self.lm_head_bias and not self.own_lm_head:
            raise HeadError("lm_head_bias is true but own_lm_head is false", "The bias belongs to an own lm_head")
        for name in ("embed_scale", "logit_scale", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise HeadError(f"{name} is {value}", "It must be a positive number")


class AttentionFreeConfig(HeadConfig):
    """Heads without attention: `x = W_in [embed, hidden] + b`, act, blocks, `W_out x + b`, lm_head.

    | form               | inputs          | W_in | act  | blocks               | W_out | lm_head |
    |--------------------|-----------------|------|------|----------------------|-------|---------|
    | feature regression | embed, hidden   | yes  |      | residual, silu       | yes   | target  |
    | surgery MLP        | embed           |      |      | plain, relu          |       | target  |
    | projection         | hidden          | yes  | silu | none                 |       | own     |

    A head that reads the hidden state is fed its own output in the next step of a chain, so its
    output must be as wide as the target's hidden state; if it is not, it can draft one token only.
    """

    model_type = "eagle_attention_free"
    method = "eagle"
    architecture = "EagleAttentionFreeForCausalLM"

    # There is no attention; vLLM still asks whether these divide by the tensor parallel size.
    num_attention_heads: int = 960
    num_key_value_heads: int = 960
    head_dim: int | None = 64

    use_embedding: bool = True
    use_hidden: bool = True
    #: E; None means H.
    embedding_size: int | None = None
    #: W_in with its output width (None: no W_in) and the activation behind it.
    input_projection: int | None = None
    input_bias: bool = True
    input_activation: str | None = None
    #: N blocks of Linear, activation, LayerNorm.
    num_blocks: int = 0
    block_activation: str = "silu"
    block_residual: bool = False
    layer_norm_eps: float = 1e-5
    output_projection: bool = False
    output_bias: bool = True
    #: `next`: at position p the head reads token p+1, as EAGLE does. `same`: it reads token p.
    token_pairing: str = "next"

    @property
    def embed_width(self) -> int:
        return self.embedding_size or self.hidden_size

    @property
    def reads_embedding(self) -> bool:
        return self.use_embedding

    @property
    def input_width(self) -> int:
        return self.embed_width * self.use_embedding + self.hidden_size * self.use_hidden

    @property
    def width(self) -> int:
        """Width inside the blocks."""
        return self.input_projection or self.input_width

    @property
    def lm_head_width(self) -> int:
        return self.hidden_size if self.output_projection else self.width

    @property
    def max_draft_tokens(self) -> int | None:
        return 1 if self.use_hidden and self.lm_head_width != self.hidden_size else None

    def validate_head(self) -> None:
        super().validate_head()
        if not (self.use_embedding or self.use_hidden):
            raise HeadError("use_embedding and use_hidden are both false", "The head must read at least one")
        if self.own_embedding and not self.use_embedding:
            raise HeadError("own_embedding is true but use_embedding is false", "Drop one of the two")
        if self.use_embedding and not self.own_embedding and self.embed_width != self.hidden_size:
            raise HeadError(
                f"embedding_size is {self.embed_width} but the target's embedding is {self.hidden_size} wide",
                "An embedding of another width must be the head's own (own_embedding: true)",
                "Pass the embedding table to `vllm-eagle convert`",
            )
        if not self.own_lm_head and self.lm_head_width != self.hidden_size:
            raise HeadError(
                f"the head's output is {self.lm_head_width} wide, the target's lm_head reads {self.hidden_size}",
                "A head of another width needs its own lm_head (own_lm_head: true)",
            )
        if self.num_blocks < 0:
            raise HeadError(f"num_blocks is {self.num_blocks}", "It must be 0 or more")
        _one_of(self, "block_activation", ACTIVATIONS)
        if self.input_activation is not None:
            _one_of(self, "input_activation", ACTIVATIONS)
            if self.input_projection is None:
                raise HeadError("input_activation is set but there is no input_projection", "Drop one of the two")
        _one_of(self, "token_pairing", ("next", "same"))


class TransformerHeadConfig(HeadConfig):
    """What EAGLE-1/2 and EAGLE-3 heads share: Llama-style decoder layers."""

    num_hidden_layers: int = 1
    num_attention_heads: int = 1
    num_key_value_heads: int = 1
    head_dim: int | None = None
    intermediate_size: int = 0
    #: Activation of the gated MLP, by the name that transformers gives it.
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 4096
    #: As in transformers: `rope_type`, `rope_theta` and the parameters of the kind. `partial_rotary_factor` r: the
    #: first r of each attention head's values are rotated.
    rope_parameters: dict[str, Any] | None = None
    #: Tokens that a position attends to, itself among them; None: all before it.
    sliding_window: int | None = None
    fc_bias: bool = False
    #: Biases on q, k and v (Qwen2), on o, and on the MLP.
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    #: RMSNorm on each head's q and k before RoPE (Qwen3).
    qk_norm: bool = False
    #: RMSNorm between the last layer and the lm_head.
    output_norm: bool = False
    #: What the next step of a chain is fed: the stream before or after `output_norm`.
    feedback: str = "pre_norm"

    default_theta = 10000.0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None and self.num_attention_heads:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.rope_parameters is None and "rope_theta" not in kwargs:
            self.rope_parameters = {"rope_type": "default", "rope_theta": self.default_theta}
        super().__post_init__(**kwargs)

    def validate_head(self) -> None:
        super().validate_head()
        for name in (
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "head_dim",
        ):
            _positive(self, name)
        if self.num_attention_heads % self.num_key_value_heads:
            raise HeadError(
                f"{self.num_attention_heads} attention heads cannot be grouped over {self.num_key_value_heads} kv heads",
                "num_attention_heads must be a multiple of num_key_value_heads",
            )
        _one_of(self, "hidden_act", GATED_ACTIVATIONS)
        if self.sliding_window is not None:
            _positive(self, "sliding_window")
        kind = (self.rope_parameters or {}).get("rope_type", "default")
        if kind not in ROPE_KINDS:
            raise HeadError(
                f"rope_type is {kind!r} in the head's config.json",
                f"It must be one of {', '.join(ROPE_KINDS)}",
                _CORRECT,
            )
        _one_of(self, "feedback", ("pre_norm", "post_norm"))
        if self.feedback == "post_norm" and not self.output_norm:
            raise HeadError("feedback is post_norm but output_norm is false", "Set feedback to pre_norm")


class EagleConfig(TransformerHeadConfig):
    """EAGLE-1/2: `x = fc [embed, hidden]`, decoder layers, lm_head. H = D.

    `hidden` is the target's last hidden state after its final norm. The plain head has no norm in front
    of its first layer and none behind its last; trainers have added each of the four flags below.
    """

    model_type = "eagle_transformer"
    method = "eagle"
    architecture = "EagleTransformerForCausalLM"

    #: RMSNorm on the embedding before fc (`enorm`, `embed_layernorm`).
    embed_norm: bool = False
    #: RMSNorm on the hidden state before fc (`hnorm`).
    hidden_norm: bool = False
    #: The first layer's `input_layernorm`; later layers always have theirs.
    input_norm: bool = False


class Eagle3Config(TransformerHeadConfig):
    """EAGLE-3: `g = fc(aux hidden states)`, a first layer over [norm(embed), norm(g)], lm_head.

    `eagle_aux_hidden_state_layer_ids` counts as vLLM does: i is the residual stream after i decoder
    layers (0: the embeddings, L: the input of the final norm), ascending and distinct.
    """

    model_type = "eagle3_transformer"
    method = "eagle3"
    architecture = "Eagle3TransformerForCausalLM"

    target_hidden_size: int | None = None
    num_aux_hidden_states: int = 3
    eagle_aux_hidden_state_layer_ids: list[int] | None = None
    #: False: no fusion, the head reads the target's last hidden state (after its final norm).
    use_aux_hidden_state: bool = True
    #: One RMSNorm over the concatenated aux states, or one for each, before fc.
    norm_before_fc: bool = False
    fc_norm: bool = False
    #: The residual starts behind (true) or before (false) `hidden_norm`.
    norm_before_residual: bool = False
    #: RMSNorms of the first layer on the embedding and on the fused state.
    input_norm: bool = True
    hidden_norm: bool = True
    output_norm: bool = True
    #: P-EAGLE: all tokens of a chain in one pass; behind the first, the head is fed `mask_token_id` and
    #: its own `mask_hidden` instead of what it drafted.
    parallel_drafting: bool = False
    mask_token_id: int | None = None

    @property
    def target_width(self) -> int:
        return self.target_hidden_size or self.hidden_size

    def __post_init__(self, **kwargs: Any) -> None:
        # vLLM decides from this dict whether the target hands over aux or last hidden states.
        kwargs["eagle_config"] = {"use_aux_hidden_state": self.use_aux_hidden_state}
        super().__post_init__(**kwargs)

    def validate_head(self) -> None:
        super().validate_head()
        masked = self.mask_token_id is not None and 0 <= self.mask_token_id < self.vocab_size
        if self.parallel_drafting and not (self.use_aux_hidden_state and masked):
            raise HeadError(
                f"parallel_drafting is true and mask_token_id is {self.mask_token_id}",
                "A head that drafts in parallel reads aux hidden states and masks with one of the target's tokens",
                "Correct config.json",
            )
        if not self.use_aux_hidden_state:
            if self.target_width != self.hidden_size:
                raise HeadError(
                    f"target_hidden_size is {self.target_width}, hidden_size {self.hidden_size}, and there is no fc",
                    "Without aux hidden states the two must be equal",
                )
            for name in ("fc_bias", "fc_norm", "norm_before_fc"):
                if getattr(self, name):
                    raise HeadError(f"{name} is true but use_aux_hidden_state is false", "There is no fc without aux")
            return
        ids = self.eagle_aux_hidden_state_layer_ids
        if not ids:
            raise HeadError(
                "config.json has no eagle_aux_hidden_state_layer_ids",
                "The layers whose hidden states the head was trained on must be named",
                "Convert the head with `vllm-eagle convert`, which writes them",
            )
        if list(ids) != sorted(set(ids)) or ids[0] < 0:
            raise HeadError(
                f"eagle_aux_hidden_state_layer_ids is {list(ids)}",
                "vLLM hands over the layers ascending and once each, so they must be listed that way",
            )
        if len(ids) != self.num_aux_hidden_states:
            raise HeadError(
                f"num_aux_hidden_states is {self.num_aux_hidden_states} but {len(ids)} layer ids are listed: {list(ids)}",
                "The two must agree",
            )


_CORRECT = "Convert the head again, or correct config.json"
ACTIVATIONS = ("silu", "relu", "gelu")
#: Of gated MLPs: functions of `transformers.activations.ACT2FN` that have no parameters.
GATED_ACTIVATIONS = (
    "silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast", "quick_gelu", "relu", "relu2", "relu6", "tanh",
    "sigmoid", "mish", "leaky_relu",
)  # fmt: skip
#: Kinds of RoPE whose angles depend on the position alone.
ROPE_KINDS = ("default", "linear", "yarn", "llama3", "longrope", "proportional")

#: model_type -> config class, for everything this package serves.
HEAD_CONFIGS: dict[str, type[HeadConfig]] = {c.model_type: c for c in (AttentionFreeConfig, EagleConfig, Eagle3Config)}


def register_configs() -> None:
    """Let `AutoConfig` read our heads' `config.json`."""
    for model_type, config in HEAD_CONFIGS.items():
        AutoConfig.register(model_type, config, exist_ok=True)


def _field_names(cls: type[HeadConfig]) -> set[str]:
    return (
        set(cls().to_dict())
        | {name for c in cls.__mro__ for name in vars(c).get("__annotations__", {})}
        | {
            "architectures",
            "model_type",
            "transformers_version",
            "rope_theta",
            "rope_scaling",
            "torch_dtype",
            "dtype",
        }
    )


def _positive(config: HeadConfig, name: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, int) or value <= 0:
        raise HeadError(f"{name} is {value!r} in the head's config.json", "It must be a positive integer", _CORRECT)


def _one_of(config: HeadConfig, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in allowed:
        raise HeadError(
            f"{name} is {value!r} in the head's config.json", f"It must be one of {', '.join(allowed)}", _CORRECT
        )
