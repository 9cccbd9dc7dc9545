"""Faults planted in sound heads: the doctor's verdict names them, and its options of `convert` repair them."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
from typer.testing import CliRunner
from vllm_eagle_plugin.conversion.doctor import diagnose
from vllm_eagle_plugin.conversion.doctor.agreement import Agreement, Material, expected_length
from vllm_eagle_plugin.conversion.options import Options
from vllm_eagle_plugin.conversion.verify.written import read_written

from vllm_eagle_plugin.cli import app
from vllm_eagle_plugin.errors import UsageError
from vllm_eagle_plugin.reference import draft_chain
from vllm_eagle_plugin.targets.observer import Observer

from . import faults
from .cases import CASES
from .faults import chunks, layers, noise, saved, says, stray, swapped
from .known_answer import build_target, known_answer_head
from .known_answer.heads import target_states
from .known_answer.target import VOCAB, WIDTH

#: Name -> case of the sound head, what is done to it, what of the verdict's options names the fault.
SINGLE = {
    "layers one lower": ("eagle3", [layers(0, 2, 4)], "--aux-ids 1,3,5"),
    "layers one higher": ("eagle3", [layers(2, 4, 6)], "--aux-ids 1,3,5"),
    "fc reads layers downwards": ("eagle3", [chunks(2, 1, 0)], "--aux-ids 5,3,1"),
    "fc reads layers in turn": ("eagle3", [chunks(1, 2, 0)], "--aux-ids 3,5,1"),
    "d2t of another run": ("eagle3-reduced", [faults.other_d2t], "--d2t t2d"),
    "d2t never saved": ("eagle3-reduced", [faults.d2t_never_saved], "--d2t t2d"),
    "norm before residual claimed": ("eagle3", [says(norm_before_residual=True)], "--set norm_before_residual=false"),
    "norm before residual forgotten": (
        "eagle3-norm-before-fc", [says(norm_before_residual=False)], "--set norm_before_residual=true",
    ),
    "feedback no file can tell": ("eagle-post-norm", [], "--set feedback=post_norm"),
    "feedback behind the norm claimed": ("eagle3", [says(norm_output=True)], "--set feedback=pre_norm"),
    "feedback behind the norm forgotten": ("eagle3-post-norm", [says(norm_output=False)], "--set feedback=post_norm"),
    "stray lm_head": ("eagle3-shared-lm-head", [stray("lm_head.weight", VOCAB, WIDTH)], "--drop lm_head.weight"),
    "stray final norm": ("eagle3-no-final-norm", [stray("norm.weight", WIDTH)], "--drop norm.weight"),
    "stray fc bias of EAGLE-3": ("eagle3", [stray("fc.bias", WIDTH, scale=5)], "--drop fc.bias"),
    "fc columns swapped": ("eagle", [swapped()], "--fc-order hidden-embed"),
    "stray fc bias": ("eagle", [stray("fc.bias", WIDTH, scale=5)], "--drop fc.bias"),
    "stray final norm of EAGLE-1": ("eagle", [stray("norm.weight", WIDTH)], "--drop norm.weight"),
    "stray input norm": (
        "eagle", [stray("layers.0.input_layernorm.weight", WIDTH)], "--drop layers.0.input_layernorm.weight",
    ),
    "stray output bias": (
        "eagle", [stray("layers.0.self_attn.o_proj.bias", WIDTH, scale=5)], "--drop layers.0.self_attn.o_proj.bias",
    ),
    "random embedding": ("eagle", [stray("embed_tokens.weight", VOCAB, WIDTH)], "--drop embed_tokens.weight"),
    "other columns in a feature head": ("feature", [swapped("input_projection.weight")], "--fc-order embed-hidden"),
    "wrong token": ("feature-same-pairing", [], "--token-pairing same"),
    "stray lm_head of a feature head": ("feature", [stray("lm_head.weight", VOCAB, WIDTH)], "--drop lm_head.weight"),
}  # fmt: skip
PAIRS = {
    "layers and residual": (
        "eagle3", [layers(0, 2, 4), says(norm_before_residual=True)],
        "--aux-ids 1,3,5 --set norm_before_residual=false",
    ),
    "layers and vocabulary": (
        "eagle3-reduced", [layers(2, 4, 6), faults.d2t_never_saved], "--aux-ids 1,3,5 --d2t t2d",
    ),
    "order and feedback": (
        "eagle3", [chunks(2, 1, 0), says(norm_output=True)], "--aux-ids 5,3,1 --set feedback=pre_norm",
    ),
    "columns and bias": (
        "eagle", [swapped(), stray("fc.bias", WIDTH, scale=5)], "--fc-order hidden-embed --drop fc.bias",
    ),
    "columns and token": (
        "feature-same-pairing", [swapped("input_projection.weight")],
        "--token-pairing same --fc-order embed-hidden",
    ),
}  # fmt: skip
SOUND = ["eagle3", "eagle3-reduced", "eagle", "eagle-two-layers", "feature"]
#: What is told of heads whose readers ask.
TOLD = {"feature": {"token_pairing": "next"}, "feature-same-pairing": {"token_pairing": "next"}}


@pytest.fixture
def plant(target_for, tmp_path):
    """`plant(case, damages)`: the target, and the folder of the damaged head."""

    def make(case, damages=()):
        config = CASES[case]()
        target = target_for(config)
        left = saved(known_answer_head(config, target))
        for damage in damages:
            damage(left)
        return target, left.write(tmp_path / "head")

    return make


@pytest.fixture(scope="session")
def texts():
    """Less text than the doctor asks for, once for each target: known answers need little."""
    kept = {}

    def material(target, layers):
        if target.folder not in kept:
            observer = Observer(target)
            kept[target.folder] = Material(observer, observer.answer(observer.own_prompts(16), 24), set(layers))
        kept[target.folder].need(layers)
        return kept[target.folder]

    return material


@pytest.fixture
def examine(texts):
    def run(case, target, folder, **more):
        return diagnose(folder, str(target.folder), Options(**TOLD.get(case, {})), material=texts, **more)

    return run


def assert_drafts_exactly(folder, target, steps=4):
    """The written head drafts the language without a mistake."""
    head = read_written(folder, *(t.float() for t in (target.embedding, target.lm_head)))
    walk = target.walk(int(target.successor[0]), 16)
    tokens = torch.tensor([walk[:11]])
    drafts = draft_chain(head, tokens, target_states(head.config, target, tokens[:, :-1]), steps)[0]
    assert drafts.tolist() == [walk[p + 2 : p + 2 + steps] for p in range(10)]


def assert_repairs(found, expected, target, tmp_path):
    assert found.kind == "repairable", found.verdict
    assert sorted(shlex.split(found.flags)) == sorted(shlex.split(expected)), found.verdict
    assert found.rows[0] is found.outcome.best
    assert found.expected_length > 3
    words = shlex.split(found.command)[1:]
    words[words.index("OUT")] = str(tmp_path / "out")
    done = CliRunner().invoke(app, [*words, "--no-verify"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert_drafts_exactly(tmp_path / "out", target)


@pytest.mark.parametrize("fault", SINGLE)
def test_finds_and_repairs_a_fault(fault, plant, examine, tmp_path):
    case, damages, expected = SINGLE[fault]
    target, folder = plant(case, damages)
    assert_repairs(examine(case, target, folder), expected, target, tmp_path)


@pytest.mark.parametrize("fault", PAIRS)
def test_finds_and_repairs_two_faults(fault, plant, examine, tmp_path):
    case, damages, expected = PAIRS[fault]
    target, folder = plant(case, damages)
    assert_repairs(examine(case, target, folder), expected, target, tmp_path)


@pytest.mark.parametrize("case", SOUND)
def test_calls_a_sound_head_sound(case, plant, examine):
    target, folder = plant(case)
    found = examine(case, target, folder)
    assert found.kind == "sound", found.verdict
    assert not found.flags
    assert found.expected_length > 2  # two layers of attention are less exact behind random prompts


def test_measures_both_where_the_reader_refuses_to_guess(plant, texts, tmp_path):
    """A feature head whose files do not say which token it was trained on."""
    target, folder = plant("feature")
    found = diagnose(folder, str(target.folder), material=texts)
    assert "token-pairing" in str(found.outcome.refusal)
    assert_repairs(found, "--token-pairing next", target, tmp_path)


def test_noise_cannot_be_repaired(plant, examine):
    target, folder = plant("eagle", [noise("layers.0.mlp.down_proj.weight")])
    found = examine("eagle", target, folder)
    assert found.kind == "beyond-repair"
    assert "cannot be repaired by flags" in found.verdict
    assert "layers.0.mlp.down_proj.weight" in found.verdict
    assert not found.command


def test_zeros_cannot_be_repaired(plant, examine):
    def zeros(head):
        head.tensors["layers.0.mlp.up_proj.weight"].zero_()

    target, folder = plant("eagle", [zeros])
    found = examine("eagle", target, folder)
    assert (found.kind, "up_proj.weight is all zeros" in found.verdict) == ("beyond-repair", True)


def test_a_head_trained_before_the_final_norm_cannot_be_repaired(targets, tmp_path, examine):
    """Its fc undoes the target's norm, as that of a head fed the stream before it would not have to."""
    target = targets()
    head = known_answer_head(CASES["eagle"](), target)
    left = saved(head)
    tokens = torch.arange(VOCAB)[:, None]
    with torch.no_grad():
        behind = target.model.model(tokens).last_hidden_state[:, 0]
    raw = []
    hook = target.model.model.norm.register_forward_pre_hook(lambda _, args: raw.append(args[0][:, 0]))
    with torch.no_grad():
        target.model.model(tokens)
    hook.remove()
    # fc reads the raw stream as the head read the normed one.
    embed, hidden = left.tensors["fc.weight"].chunk(2, 1)
    left.tensors["fc.weight"] = torch.cat((embed, (torch.linalg.pinv(raw[0]) @ behind @ hidden.T).T), 1)
    found = examine("eagle", target, left.write(tmp_path / "head"))
    assert found.kind == "beyond-repair"
    assert "before the target's final norm" in found.verdict


def test_finds_the_target_a_head_belongs_to(plant, texts, tmp_path):
    other = build_target(tmp_path / "other", seed=3)
    target, folder = plant("eagle")
    found = diagnose(folder, str(other.folder), also=[str(target.folder)], material=texts)
    assert found.kind == "other-target", found.verdict
    assert str(target.folder) in found.command


def test_a_weak_head_is_told_from_a_wrong_one(plant, examine):
    """Noise in the last layer: no other reading helps, and drafts still agree now and then."""

    def tired(head):
        torch.manual_seed(1)
        weight = head.tensors["layers.0.mlp.down_proj.weight"]
        weight += 3 * weight.std() * torch.randn_like(weight)

    target, folder = plant("eagle", [tired])
    found = examine("eagle", target, folder)
    assert found.kind == "weak", found.verdict
    assert "sound and simply weak" in found.verdict
    assert 1.2 < found.expected_length < 2


def test_the_command_line(plant, tmp_path):
    """Text of the target's own, a picture, JSON and an exit code that scripts can read."""
    target, folder = plant("eagle3", [layers(0, 2, 4)])
    arguments = ["doctor", str(folder), "--target", str(target.folder), "--plot", str(tmp_path / "found.svg")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 1
    assert "--aux-ids 1,3,5" in done.output
    assert "vllm PR #43671" in done.output
    assert (tmp_path / "found.svg").read_text().startswith("<?xml")
    told = ["doctor", str(folder), "--target", str(target.folder), "--aux-ids", "1,3,5", "--json"]
    done = CliRunner().invoke(app, told, catch_exceptions=False)
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert result["verdict"] == "sound"
    assert result["expected_acceptance_length"] > 3
    assert result["readings"][0]["current"]


def test_acceptance_length_is_what_an_engine_counts():
    """Two texts by hand: drafts of three, of which 2, 0 and 3 agree on the way."""
    hits = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
    found = Agreement(hits, torch.zeros(5, 3), torch.zeros(5, dtype=torch.long))
    # From 0: 2 accepted, on at 3: none, on at 4: 3. From 1: 0, 0, 0, 3. From 2: 0, 0, 3. From 3: 0, 3.
    assert expected_length(found) == pytest.approx(1 + (5 + 3 + 3 + 3) / (3 + 4 + 3 + 2))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--plot", "x.txt"], ".png or .svg"), (["--prompts", "nowhere.txt"], "nowhere.txt")],
)
def test_bad_options_are_one_clear_error(arguments, says, plant):
    target, folder = plant("eagle")
    with pytest.raises(UsageError, match=says):
        CliRunner().invoke(
            app, ["doctor", str(folder), "--target", str(target.folder), *arguments], catch_exceptions=False
        )
