"""Heads that stock vLLM loads without an error and ruins, or not; ours come out right or are refused.

Each is a known-answer head as its producer ships it: every one of its drafts is right, so whatever is lost
was lost in loading. What ours make of it equals, bit by bit, a head that `test_producers.py` serves with all
drafts accepted, unless a test here serves it itself.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from vllm_eagle_plugin.conversion import convert
from vllm_eagle_plugin.conversion.options import Options

from vllm_eagle_plugin.errors import HeadError

from .cases import CASES, LAYOUTS
from .engine import engine
from .known_answer import build_target, known_answer_head
from .producers.eagle1 import with_embedding
from .producers.eagle3 import vocabulary
from .producers.layout import DEEP, as_midlayer, llama, save_config, save_safetensors, state_of
from .producers.making import make
from .random_models import HEADS, random_head, random_prompts, random_target
from .references import reference_drafts
from .stock_heads import run_stock
from .test_known_answer import assert_exact, walks

pytestmark = pytest.mark.engine
K, TOKENS = 3, 30
ODD = [0, 1, 7]  # layers that no config names and nobody would guess
FEW = 6  # a vocabulary so small that its ids are in range as offsets too


class Heads:
    """The heads' folders and targets, by the names of FORMATS' measured cases."""

    def __init__(self, root, target_for):
        self.root, self.target_for = root, target_for
        self.targets, self.made = {}, {}
        for build in (self.eagle1, self.eagle3, self.few_tokens, self.rope):
            build()

    def write(self, name, target, state, config):
        folder = self.root / name
        save_safetensors(state, folder)
        save_config(config, folder)
        self.targets[name] = target

    def known(self, case, layers=6):
        config = {**CASES, **LAYOUTS}[case]()
        target = self.target_for(config, layers=layers)
        return known_answer_head(config, target), target

    def eagle1(self):
        head, target = self.known("eagle")
        state, config = state_of(head), llama(head.config)
        self.write("e1_good", target, state, config)
        first, second = state["fc.weight"].chunk(2, 1)
        self.write("e1_swapped", target, {**state, "fc.weight": torch.cat((second, first), 1)}, config)
        noise = torch.randn(head.config.vocab_size, head.config.hidden_size)
        self.write("e1_random_embed", target, {**state, "embed_tokens.weight": noise}, config)
        head, target = self.known("eagle-fc-bias")
        state = with_embedding(head, state_of(head))
        self.write("e1_fcbias", target, state, llama(head.config))
        self.write("e1_fcbias_true", target, state, llama(head.config, bias=True))

    def eagle3(self):
        head, target = self.known("eagle3-default-reduced", DEEP)
        state = {**as_midlayer(state_of(head)), **vocabulary(head)}
        config = llama(head.config, draft_vocab_size=head.config.draft_vocab)
        self.write("e3_good", target, state, config)
        forge = {**config, "architectures": ["LlamaForCausalLMEagle3"]}
        nested = {"eagle_aux_hidden_state_layer_ids": [1, 3, 4], "use_aux_hidden_state": True}
        self.write("e3_output_convention_nested", target, state, {**forge, "eagle_config": nested})
        self.write("e3_norm_output", target, state, {**forge, "norm_output": True})
        self.write("e3_nhl3", target, state, {**config, "num_hidden_layers": 3})
        self.write("e3_no_d2t", target, {n: t for n, t in state.items() if n not in ("d2t", "t2d")}, config)
        self.write("e3_lmhead_missing", target, {n: t for n, t in state.items() if n != "lm_head.weight"}, config)
        described = CASES["eagle3-reduced"]()
        described.eagle_aux_hidden_state_layer_ids = ODD
        target = self.target_for(described, layers=DEEP)
        head = known_answer_head(described, target)
        nested = {"use_aux_hidden_state": True, "use_last_layernorm": True}
        self.write("e3_no_ids", target, state_of(head), {**forge, "eagle_config": nested})
        self.made["e3_no_ids"] = head

    def few_tokens(self):
        config = LAYOUTS["eagle3-default-reduced"]()
        config.draft_vocab_size = FEW
        for seed in range(50):
            target = build_target(self.root / "few" / str(seed), subset=FEW, seed=seed, layers=DEEP)
            ids = target.successor.unique()
            if int((ids + torch.arange(FEW)).max()) < config.vocab_size:
                break
        head = known_answer_head(config, target)
        state = {**state_of(head), "d2t": ids}
        self.write("e3_d2t_absolute_inrange", target, state, llama(config, draft_vocab_size=FEW))
        self.made["e3_d2t_absolute_inrange"] = head

    def rope(self):
        """Attention that decides, trained at 10000 under a config that says a million (AngelSlim)."""
        folder = self.root / "random"
        model = random_target(folder)
        head = random_head(HEADS["eagle3"], model)
        with torch.no_grad():
            for part in ("q_proj", "k_proj", "o_proj"):
                getattr(head.layers[0].self_attn, part).weight.mul_(3)
        described = llama(head.config, draft_vocab_size=head.config.draft_vocab)
        described["eagle_aux_hidden_state_layer_ids"] = head.config.eagle_aux_hidden_state_layer_ids
        for name, theta in (("rope_good", 10000), ("rope_config", 1000000)):
            self.write(name, folder, as_midlayer(state_of(head)), {**described, "rope_theta": theta})
        self.made["rope"] = head, model

    def asked(self, name):
        return random_prompts(24, 40) if name.startswith("rope") else walks(self.targets[name])


@pytest.fixture(scope="module")
def heads(tmp_path_factory, target_for):
    torch.manual_seed(0)
    return Heads(tmp_path_factory.mktemp("silent"), target_for)


@pytest.fixture(scope="module")
def stock(heads):
    """What stock vLLM does with each of them."""
    jobs = [
        {
            "target": getattr(target, "folder", target), "head": heads.root / name, "prompts": heads.asked(name),
            "method": "eagle" if name.startswith("e1") else "eagle3", "k": K,
            "tokens": 1 if name.startswith("rope") else TOKENS,
        }
        for name, target in heads.targets.items()
    ]  # fmt: skip
    found = dict(zip(heads.targets, run_stock(jobs), strict=True))
    for name, result in found.items():
        rates = result.get("error") or " ".join(f"{rate:.2f}" for rate in result["accepted"])
        print(f"stock vLLM, {name}: {rates}")
    return found


def ours(heads, name, tmp_path, **options):
    target = heads.targets[name]
    return convert(heads.root / name, str(getattr(target, "folder", target)), tmp_path / "out", Options(**options))


def equal(done, made):
    """The same weights, bit by bit, and the same config."""
    written = load_file(done.output / "model.safetensors")
    config = json.loads((done.output / "config.json").read_text())
    del config["eagle_provenance"]
    return (
        config == made.config
        and set(written) == set(made.tensors)
        and all(torch.equal(written[name], tensor) for name, tensor in made.tensors.items())
    )


@pytest.mark.parametrize("name", ["e1_good", "e3_good"])
def test_the_rig_is_sound(name, stock):
    """Without a fault, stock vLLM accepts everything."""
    assert stock[name]["accepted"] == [1.0] * K


#: Case: what stock vLLM keeps of each position's drafts at most, the fixture that ours equal, what must be said.
RUINED = {
    "e1_fcbias": (0.5, "safeailab-eagle", {}),
    "e1_fcbias_true": (0.5, "safeailab-eagle", {}),
    "e1_swapped": (0.5, "safeailab-eagle: Llama-3", {"fc_order": "hidden-embed"}),
    "e1_random_embed": (0.5, "safeailab-eagle: Llama-3", {"drop": ("embed_tokens.weight",)}),
    "e3_output_convention_nested": (0.5, "safeailab-eagle3", {}),
    "e3_norm_output": (0.5, "safeailab-eagle3", {"producer": "specforge"}),
    "e3_nhl3": (0.5, "safeailab-eagle3", {}),
}


@pytest.mark.parametrize("name", RUINED)
def test_stock_ruins_it_without_an_error_and_ours_is_whole(name, heads, stock, target_for, tmp_path):
    most, good, told = RUINED[name]
    assert "error" not in stock[name]
    # by the third token: some faults, like feeding back the wrong stream, leave the first one right
    assert stock[name]["accepted"][-1] <= most
    assert equal(ours(heads, name, tmp_path, **told), make(good, target_for, tmp_path / "good"))


REFUSED = {
    "e1_random_embed": "nothing in common with the target's embedding",
    "e3_no_ids": "does not say which layers",
    "e3_norm_output": "which differ in feedback",
    "e3_no_d2t": "there is no d2t",
    "e3_d2t_absolute_inrange": "offsets or as absolute ids, and both fit",
    "e3_lmhead_missing": "lm_head.weight is missing",
}


@pytest.mark.parametrize("name", REFUSED)
def test_stock_ruins_it_without_an_error_and_ours_is_refused(name, heads, stock, tmp_path):
    assert "error" not in stock[name]
    assert stock[name]["accepted"][-1] <= 0.5
    with pytest.raises(HeadError, match=REFUSED[name]):
        ours(heads, name, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "told"), [("e3_no_ids", {"aux_ids": tuple(ODD)}), ("e3_d2t_absolute_inrange", {"d2t": "absolute"})]
)
def test_told_what_the_files_lack_ours_is_whole(name, told, heads, tmp_path):
    done = ours(heads, name, tmp_path, **told)
    with engine(heads.targets[name].folder, done.output, K, speculative={"method": "eagle3"}) as running:
        assert_exact(running, heads.targets[name], K)


def test_the_rope_base(heads, stock, tmp_path):
    """Stock vLLM drafts with the config's base; ours, told the producer, with the one it was trained at."""
    head, model = heads.made["rope"]
    found = {}
    for name in ("rope_good", "rope_config"):
        assert "error" not in stock[name]
        texts = [p + out for p, out in zip(heads.asked(name), stock[name]["outputs"], strict=True)]
        right = [reference_drafts(head, model, text, K).drafts[-1] for text in texts]
        found[name] = sum(drafts in stock[name]["drafts"] for drafts in right) / len(right)
    assert found["rope_good"] == 1.0
    assert found["rope_config"] < 0.5
    for told, theta in (({"producer": "angelslim"}, 1e4), ({}, 1e6)):
        done = ours(heads, "rope_config", tmp_path / str(theta), **told)
        assert done.layout.config["rope_parameters"]["rope_theta"] == theta
