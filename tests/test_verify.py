"""Verification passes on sound conversions of each family, and fails when the output is altered on purpose."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner
from vllm_eagle_plugin.conversion import convert
from vllm_eagle_plugin.conversion.options import Options
from vllm_eagle_plugin.conversion.verify import check as checking
from vllm_eagle_plugin.conversion.verify import verify

from vllm_eagle_plugin.cli import app
from vllm_eagle_plugin.errors import HeadError, UsageError

from .cases import CASES
from .faults import saved
from .known_answer import known_answer_head

#: One case of each family and layout: ours and stock vLLM's.
FAMILIES = ["feature", "eagle", "eagle-fc-bias", "eagle3-reduced"]
TOLD = {"feature": Options(token_pairing="next")}


@pytest.fixture
def made(target_for, tmp_path):
    """`made(case)`: a target and a trained head of this case, converted without verification."""

    def make(case):
        config = CASES[case]()
        target = target_for(config)
        folder = saved(known_answer_head(config, target)).write(tmp_path / "trained")
        done = convert(folder, str(target.folder), tmp_path / "out", TOLD.get(case))
        return target, folder, done

    return make


def alter(folder, name, change):
    """Change one tensor of a written head."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = change(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


def slightly_off(tensor):
    torch.manual_seed(0)
    return tensor * (1 + 0.1 * torch.randn_like(tensor))


def assert_proven(found, least=200):
    figures = found.as_json()
    assert found.passed, found.why
    assert figures["positions"] >= least
    assert figures["drafts_equal"] == figures["positions"]
    assert [row["argmax_agreement"] for row in figures["logits"]] == [1.0] * 4
    assert all(0 < row["max_difference"] < 1e-2 * figures["logits_spread"] for row in figures["logits"])


@pytest.mark.parametrize("case", FAMILIES)
def test_plain_verification_of_each_family(case, made):
    """In torch the two are the same computation of the same numbers."""
    target, folder, done = made(case)
    found = verify(folder, str(target.folder), done.output, TOLD.get(case), plain=True)
    assert found.passed, found.why
    assert found.engine == "torch"
    assert found.figures["positions"] >= 200
    assert found.figures["drafts_equal"] == found.figures["positions"]


@pytest.mark.engine
@pytest.mark.v2
@pytest.mark.parametrize("case", ["feature", "eagle-fc-bias", "eagle3-reduced"])
def test_verification_in_vllm(case, made):
    target, folder, done = made(case)
    found = verify(folder, str(target.folder), done.output, TOLD.get(case))
    assert_proven(found)
    assert found.engine.startswith("vllm")
    assert ("without this plugin" in found.engine) == (not done.layout.needs_plugin)


@pytest.mark.engine
def test_vllm_shows_what_a_changed_head_does(made, monkeypatch):
    """Also without the comparison of files: the drafts and logits alone give it away."""
    target, folder, done = made("eagle3-reduced")
    alter(done.output, "layers.0.mlp.down_proj.weight", slightly_off)
    monkeypatch.setattr(checking, "_changed", lambda layout, converted: "")
    found = verify(folder, str(target.folder), done.output)
    assert not found.passed
    assert "logits differ" in found.why


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("feature", "body.output_projection.bias"),
        ("eagle", "layers.0.post_attention_layernorm.weight"),
        ("eagle-fc-bias", "fc.bias"),
        ("eagle3-reduced", "norm.weight"),
    ],
)
def test_an_altered_tensor_fails(case, name, made, monkeypatch):
    """By its bits, and by what is computed with it where nobody looks at bits."""
    target, folder, done = made(case)
    alter(done.output, name, slightly_off)
    found = verify(folder, str(target.folder), done.output, TOLD.get(case), plain=True)
    assert (found.passed, found.why) == (False, f"tensor {name} is not what was converted")
    monkeypatch.setattr(checking, "_changed", lambda layout, converted: "")
    found = verify(folder, str(target.folder), done.output, TOLD.get(case), plain=True)
    assert not found.passed
    assert found.why


def test_a_changed_flag_fails(made):
    """Weights are the same; the config says something else."""
    target, folder, done = made("eagle3-reduced")
    file = done.output / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "norm_before_residual": not config["norm_before_residual"]}))
    found = verify(folder, str(target.folder), done.output, plain=True)
    assert not found.passed
    assert found.why


def test_another_mapping_fails(made):
    """A single wrong offset changes no logit, only what is drafted."""
    target, folder, done = made("eagle3-reduced")

    def turned(d2t):
        ids = d2t + torch.arange(len(d2t))
        return ids.roll(1) - torch.arange(len(d2t))

    alter(done.output, "d2t", turned)
    assert not verify(folder, str(target.folder), done.output, plain=True).passed


@pytest.mark.engine
def test_convert_verifies_and_keeps_the_figures(made, tmp_path):
    target, folder, _ = made("eagle")
    arguments = ["convert", str(folder), "--target", str(target.folder), "-o", str(tmp_path / "proven"), "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    kept = json.loads((tmp_path / "proven" / "config.json").read_text())["eagle_provenance"]["verification"]
    assert kept == json.loads(done.stdout)["verification"]
    assert kept["passed"]
    assert kept["positions"] >= 200


def test_a_failed_verification_leaves_nothing(made, tmp_path, monkeypatch):
    target, folder, _ = made("eagle")
    monkeypatch.setattr(checking, "has_vllm", lambda: False)
    read = checking.read_written
    monkeypatch.setattr(checking, "read_written", lambda *a: _tampered(read(*a)))
    with pytest.raises(HeadError, match="does not compute what the trained one does"):
        convert(folder, str(target.folder), tmp_path / "wrong", verify=True)
    assert not (tmp_path / "wrong").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def _tampered(head):
    with torch.no_grad():
        head.fc.weight.mul_(1.1)
    return head


def test_without_vllm_convert_verifies_in_torch(made, tmp_path, monkeypatch):
    target, folder, _ = made("eagle3-reduced")
    monkeypatch.setattr(checking, "has_vllm", lambda: False)
    done = convert(folder, str(target.folder), tmp_path / "proven", verify=True)
    assert done.verification["engine"] == "torch"
    assert done.verification["passed"]


def test_the_verb(made):
    target, folder, done = made("eagle3-reduced")
    arguments = ["verify", str(folder), "--target", str(target.folder), "--converted", str(done.output), "--plain"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "chains equal to the token" in result.output
    alter(done.output, "fc.weight", slightly_off)
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["why"] == "tensor fc.weight is not what was converted"


def test_a_folder_without_a_head_is_one_clear_error(made, tmp_path):
    target, folder, _ = made("eagle")
    with pytest.raises(UsageError, match="holds no converted head"):
        verify(folder, str(target.folder), tmp_path)


def test_a_head_that_vllm_refuses_is_not_written(made, tmp_path, monkeypatch):
    """It runs the target alone, so the head is at fault, and leaving the check out would not make it serve."""
    target, folder, _ = made("eagle")

    def answer(job):
        if job.alone:
            return {"alone": ""}
        raise checking.BrokenOff("vLLM runs the target and breaks off with the written head: odd", "", "Report it")

    monkeypatch.setattr(checking, "_answer", answer)
    with pytest.raises(HeadError, match="breaks off with the written head: odd") as refused:
        convert(folder, str(target.folder), tmp_path / "refused", verify=True)
    assert "--no-verify" not in str(refused.value)
    assert not (tmp_path / "refused").exists()


def test_a_failure_in_vllm_says_whose_fault_it_is(made, monkeypatch):
    target, folder, done = made("eagle3-reduced")
    wrong = {"engine": "vllm", "precision": "float32", "figures": {}, "passed": False, "why": "logits differ"}
    monkeypatch.setattr(checking, "_answer", lambda job: wrong)
    assert "in PyTorch the two are equal" in verify(folder, str(target.folder), done.output).why
