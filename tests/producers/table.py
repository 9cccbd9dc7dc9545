"""docs/producers.md, from the registry and from what conversion makes of it.

`python -m tests.producers.table` writes it anew; a test fails when it is stale.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vllm_eagle_plugin.conversion.readers import READERS

from ..cases import SUBSET
from ..known_answer import Target, build_target
from . import FIXTURES
from .making import Made, make

PAGE = Path(__file__).parents[2] / "docs" / "producers.md"

#: Reader: what is peculiar to its heads, and what stock vLLM 0.32 does with them as they are.
FACTS = {
    "safeailab-eagle": (
        "`bias` in config.json is meant for fc, true by default and often wrong; Mixtral configs lack `rope_theta` "
        "(trained at 10000); Qwen2 heads have q/k/v biases",
        "drops `fc.bias` silently, and with `bias: true` leaves attention biases uninitialised; Mixtral: RoPE "
        "base 1,000,000; Qwen2: refuses the architecture; without any of these: serves",
    ),
    "hass-layernorm": (
        "norms on embedding and hidden state before fc, and before the lm_head",
        "refuses `embed_layernorm`",
    ),
    "vllm-v0": (
        "a wrapper config; `eagle_fc_bias` inside or outside; `token_map` of absolute ids; a copied lm_head; a "
        "skipped input norm whose weight is kept",
        "refuses `lm_head.weight`; without it, drops `fc.bias` silently",
    ),
    "sglang-eagle": (
        "SafeAILab's tensors; a hot-token map beside them makes the vocabulary a reduced one",
        "refuses the architecture",
    ),
    "baldeagle": ("`fc.bias`, no embedding", "refuses the architecture"),
    "baldeagle-eagle3": (
        "SpecForge's architecture name; `d2t` in 32 bits; no embedding",
        "serves, where the vocabulary is reduced",
    ),
    "speculators-eagle": (
        "names of its own; the layer described in `transformer_layer_config`; three norms or none",
        "refuses: removed from speculators and vLLM",
    ),
    "speculators-eagle3": (
        "`norm_before_residual` false where it is not written; any number of hidden states; the verifier's parts "
        "in raw dumps",
        "reads an unwritten `norm_before_residual` as true, silently; refuses another number of hidden states "
        "than three on Llama layers, and the verifier's parts; otherwise serves",
    ),
    "speculators-peagle": (
        "`mask_hidden` and a mask token: all tokens in one pass",
        "serves, with `parallel_drafting`",
    ),
    "automodel-eagle": (
        "input norm and final norm, what is behind the latter is fed back; the target's config with "
        "`draft_num_hidden_layers`",
        "refuses the norms",
    ),
    "automodel-eagle3": (
        "names under `model.`; early versions keep the vocabulary in `eagle_meta.pt` alone, most frequent tokens first",
        "refuses `model.`; with the names corrected and no `d2t`, accepts nothing, silently",
    ),
    "safeailab-eagle3": (
        "one layer whatever `num_hidden_layers` says; `d2t` of zeros for the whole vocabulary; widths that differ "
        "from the target's; no layer ids",
        "fills up to `num_hidden_layers` with uninitialised layers, silently; refuses `d2t` for the whole "
        "vocabulary; otherwise serves",
    ),
    "specforge": (
        "layer ids nested and counted as outputs of layers; `norm_output` means a norm before the lm_head, saved in "
        "either case; `d2t` and `t2d` always",
        "reads layers off by one, silently; with `norm_output: true` feeds back the wrong stream, silently; refuses "
        "`d2t` for the whole vocabulary; with neither: serves",
    ),
    "specforge-peagle": (
        "layer ids nested and counted as outputs of layers; a RoPE scaling in its config is not trained with",
        "reads layers off by one, silently; needs `parallel_drafting` said",
    ),
    "deepspec": (
        "the target's config; five layers in `target_layer_ids`, counted as outputs; frozen copies of both tables",
        "refuses the architecture",
    ),
    "angelslim": (
        "trained with RoPE base 10000, whatever config.json says (multimodal RoPE excepted)",
        "uses the config's RoPE base, silently",
    ),
    "modelopt": (
        "layer ids from a set, in either count, nested; flags that leave out norms; RoPE base in `rope_scaling`; "
        "heads without fc; EAGLE-1 under the name of EAGLE-3",
        "reads layers off by one, silently, or on CUDA the default ones (ids are nested: from its source)",
    ),
    "vllm-eagle3": (
        "TorchSpec marks its exports, and counts outputs of layers in its configs",
        "serves; TorchSpec's own ids it reads off by one, silently",
    ),
    "feature": ("no config: `--token-pairing` must be said; own embeddings apart", "refuses: no attention layer"),
    "surgery": ("copies of the target's embedding and lm_head", "refuses the config"),
    "converted": ("read back as it was written", "serves what needs no plugin; refuses our architectures without it"),
    "projection": ("plain matrices, no config: `--token-pairing` must be said", "refuses: no attention layer"),
}
INTRODUCTION = """# Producers

`vllm-eagle convert` and `inspect` recognise heads of these producers. The page is generated from the fixtures that the
tests convert (`python -m tests.producers.table`). "Stock vLLM" is 0.32.0; `tests/test_silent.py` shows what it loads silently
and ruins.

Every layout is shown to come out right: code that shares nothing with the readers writes a head whose answer is known, and in
vLLM's engine all of its drafts are accepted, or what is written equals, bit by bit, another for which that is true
(`tests/test_producers.py`). Heads made by eagle_llm, SpecForge and speculators themselves are compared with those packages' own
logits and drafts (`tests/test_producers_own.py`).

Yours is not among them? [Add a producer](../CONTRIBUTING.md#add-a-producer): one module and one fixture.

"""


def page(made: Callable[[str], Made]) -> str:
    """The page's text; `made` converts a fixture."""
    rows = [("producer", "recognised by", "peculiar", "stock vLLM", "written for")]
    for name, reader in READERS.items():
        peculiar, stock = FACTS[name]
        evidence = "; ".join(made(name).done.detection.evidence)
        routes = sorted({_route(made(n)) for n, fixture in FIXTURES.items() if fixture.reader == name})
        rows.append((f"`{name}`: {reader.summary}", evidence, peculiar, stock, " or ".join(routes)))
    return INTRODUCTION + _table(rows)


def _route(made: Made) -> str:
    return "the plugin" if made.done.layout.needs_plugin else "stock vLLM"


def _table(rows: list[tuple[str, ...]]) -> str:
    header, *body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([header, "|---" * len(rows[0]) + "|", *body]) + "\n"


def main() -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as temporary:
        root, targets, known = Path(temporary), {}, {}

        def target_for(config: object, layers: int) -> Target:
            key = (SUBSET if getattr(config, "reduced_vocab", False) else None, layers)
            if key not in targets:
                targets[key] = build_target(root / f"target{len(targets)}", subset=key[0], layers=layers)
            return targets[key]

        def made(name: str) -> Made:
            if name not in known:
                known[name] = make(name, target_for, root / str(len(known)))
            return known[name]

        PAGE.write_text(page(made))
    print(f"{PAGE} is written")


if __name__ == "__main__":
    main()
