"""Heads saved by their producers' own classes mean, to us, what those classes computed.

`tools/fixtures` made them, with random weights and inputs. Each is converted, and its reading's reference
drafts chains of the same inputs.
"""

from __future__ import annotations

import atexit
import shutil
import tarfile
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from vllm_eagle_plugin.conversion import convert

from vllm_eagle_plugin.reference import unroll


def unpacked() -> Path:
    """The fixtures, in a folder that goes away with this process."""
    folder = tempfile.mkdtemp(prefix="producers-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with tarfile.open(Path(__file__).with_name("fixtures.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return Path(folder)


FIXTURES = unpacked()
#: Fixture: the reader it is for, and where its config lies if its own files have none.
OWN = {
    "eagle_llm": ("safeailab-eagle", "config.json"),
    "specforge": ("specforge", None),
    "specforge_unnormed": ("specforge", None),
    "specforge_keys": ("specforge", None),
    "speculators": ("speculators-eagle3", None),
    "speculators_keys": ("speculators-eagle3", None),
    "speculators_qwen3": ("speculators-eagle3", None),
}


def head_folder(name: str, tmp_path: Path) -> Path:
    """A copy of the fixture without its outputs, which are no part of the head."""
    folder = tmp_path / name
    source = FIXTURES / name
    for file in source.rglob("*"):
        if file.is_file() and file.name != "outputs.safetensors":
            copy = folder / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return folder


def converted(name: str, tmp_path: Path):
    folder = head_folder(name, tmp_path)
    _, config = OWN[name]
    head = folder / "state_0" if name == "eagle_llm" else folder
    return convert(head, str(FIXTURES / "target"), tmp_path / "out", config=folder / config if config else None)


#: Steps that can be compared, where not all: speculators' training forward leaves a window at the chain's first
#: position, and a served head moves it along.
COMPARED = {"speculators_keys": 1}


def outputs(name: str) -> tuple[dict[str, torch.Tensor], bool]:
    file = FIXTURES / name / "outputs.safetensors"
    with safe_open(file, framework="pt") as opened:
        kept, fed_text = load_file(file), opened.metadata()["fed"] == "text"
    steps = COMPARED.get(name, len(kept["logits"]))
    return {**kept, "logits": kept["logits"][:steps], "drafts": kept["drafts"][:steps]}, fed_text


@torch.no_grad()
def ours(done, kept: dict[str, torch.Tensor], fed_text: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [steps, T, Vd] and drafts [steps, T] of the reading's reference."""
    reference, steps = done.reading.reference(done.target), len(kept["logits"])
    text = torch.nn.functional.pad(kept["tokens"], (0, steps)) if fed_text else None
    done_steps = list(unroll(reference, kept["tokens"], kept["hidden"], steps, text=text))
    return torch.stack([s.logits[0] for s in done_steps]), torch.stack([s.drafts[0] for s in done_steps])


@pytest.mark.parametrize("name", OWN)
def test_drafts_are_the_producers_own(name, tmp_path):
    done = converted(name, tmp_path)
    assert done.detection.reader.name == OWN[name][0]
    kept, fed_text = outputs(name)
    logits, drafts = ours(done, kept, fed_text)
    assert torch.equal(drafts, kept["drafts"])
    # eager, sdpa and bfloat16 masks differ by rounding; any wrong part differs by whole units of the spread
    assert float((logits - kept["logits"]).abs().max()) < 1e-3 * float(kept["logits"].std())


#: Fixture, flag, and a wrong value of it: each must be seen in the outputs.
WRONG = [
    ("eagle_llm", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    ("specforge", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    ("specforge", {"feedback": "post_norm"}),
    ("speculators", {"norm_before_residual": True}),
    ("speculators", {"feedback": "post_norm"}),
    ("specforge_keys", {"hidden_act": "silu"}),
    ("specforge_keys", {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
    ("specforge_keys", {"rms_norm_eps": 1e-6}),
    ("speculators_keys", {"hidden_act": "silu"}),
    ("speculators_keys", {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
    ("speculators_keys", {"sliding_window": None}),
    ("speculators_keys", {"rms_norm_eps": 1e-6}),
    ("speculators_qwen3", {"norm_before_residual": False}),
    ("speculators_qwen3", {"feedback": "pre_norm"}),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_the_outputs_would_show_a_wrong_flag(name, wrong, tmp_path):
    done = converted(name, tmp_path)
    for key, value in wrong.items():
        setattr(done.reading.config, key, value)
    kept, fed_text = outputs(name)
    logits, _ = ours(done, kept, fed_text)
    assert float((logits - kept["logits"]).abs().max()) > 0.02 * float(kept["logits"].std())
