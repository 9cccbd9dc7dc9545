"""Every architecture of vLLM's registry that generates text: read as a tiny model, or why not."""

from __future__ import annotations

import transformers
from transformers import PreTrainedModel

#: transformers has a class for it, and no tiny model of it is compared.
NOT_COMPARED = {
    "CohereAsrForConditionalGeneration": "a speech model whose lm_head stands under log_softmax.mlp",
    "CohereCompassForConditionalGeneration": "its shrunken vision tower cannot be built",
    "DbrxForCausalLM": "its class cannot read the config that it writes",
    "DiffusionGemmaForBlockDiffusion": "writes blocks by diffusion, not one token after another",
    "Ernie4_5_VLMoeForConditionalGeneration": "its shrunken vision tower cannot be built",
    "Emu3ForConditionalGeneration": "its default config cannot be built",
    "Gemma3nForConditionalGeneration": "its vision tower needs timm",
    "Glm5NextForConditionalGeneration": "its shrunken config is refused",
    "Granite4VisionForConditionalGeneration": "its default config cannot be built",
    "HunYuanDenseV1ForCausalLM": "its default config cannot be built",
    "HunYuanMoEV1ForCausalLM": "its default config cannot be built",
    "HunYuanVLForConditionalGeneration": "its default config cannot be built",
    "Qwen3OmniMoeForConditionalGeneration": "its default config cannot be built",
    "Qwen4ExpForCausalLM": "its default config cannot be built",
    "Qwen4ExpForConditionalGeneration": "its default config cannot be built",
}


def registered() -> list[str]:
    """The architectures of the installed vLLM that generate text."""
    from vllm.model_executor.models import registry

    tables = (registry._TEXT_GENERATION_MODELS, registry._MULTIMODAL_MODELS, registry._TRANSFORMERS_SUPPORTED_MODELS)
    return sorted(name for table in tables for name in table)


def in_transformers(architecture: str) -> bool:
    found = getattr(transformers, architecture, None)
    return isinstance(found, type) and issubclass(found, PreTrainedModel)


#: One of each kind of layout: what a suite of minutes has time for.
KINDS = (
    "LlamaForCausalLM", "GPT2LMHeadModel", "BloomForCausalLM", "GPTJForCausalLM", "GPTNeoXForCausalLM", "MambaForCausalLM",
    "Gemma4ForCausalLM", "DeepseekV3ForCausalLM", "Qwen3VLForConditionalGeneration", "LlavaForConditionalGeneration",
    "Llama4ForConditionalGeneration", "InternVLForConditionalGeneration", "WhisperForConditionalGeneration",
    "Qwen2AudioForConditionalGeneration", "FalconH1ForCausalLM",
)  # fmt: skip
