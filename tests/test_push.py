"""`vllm-eagle push`: what would reach the hub, with a hub of our own in its place."""

from __future__ import annotations

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import ModelCard, RepoUrl

from .known_answer import build_target
from .shell import Shell


class Hub:
    """Keeps what is uploaded."""

    def __init__(self) -> None:
        self.folders: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.made: dict = {}

    def create_repo(self, repository: str, **how: bool) -> SimpleNamespace:
        self.made = {"repository": repository, **how}
        return RepoUrl(f"https://huggingface.co/{repository}")

    def upload_folder(self, **what: object) -> None:
        self.folders.append(what)

    def upload_file(self, *, repo_id: str, path_in_repo: str, path_or_fileobj: bytes) -> None:
        self.files[path_in_repo] = path_or_fileobj


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


@pytest.fixture
def shell(tmp_path, monkeypatch, capfd):
    shell = Shell(tmp_path, build_target(tmp_path / "target"), monkeypatch, capfd)
    assert shell.convert(shell.head("safeailab-eagle").save(tmp_path / "head"))[0] == 0
    return shell


def test_a_head_and_its_card(shell, hub):
    code, out, err = shell.run("push", shell.output, "org/head", "--base-model", "org/model", "--private", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["url"] == "https://huggingface.co/org/head"
    assert hub.made == {"repository": "org/head", "private": True, "exist_ok": True}
    assert hub.folders[0]["folder_path"] == shell.output
    data = ModelCard(hub.files["README.md"].decode()).data
    assert data.base_model == "org/model"
    assert data.library_name == "vllm"
    assert {"eagle", "speculative-decoding"} <= set(data.tags)


def test_a_card_that_is_there_keeps_its_words(shell, hub):
    (shell.output / "README.md").write_text("---\nlicense: mit\ntags: [mine]\n---\n# Mine\n")
    code, out, _ = shell.run("push", shell.output, "org/head", "--base-model", "org/model", "--dry-run")
    card = ModelCard(out)
    assert code == 0
    assert card.data.license == "mit"
    assert card.data.tags == ["mine"]
    assert card.data.base_model == "org/model"
    assert "# Mine" in card.text
    assert not hub.made


def test_refusals(shell, hub, tmp_path):
    trained = tmp_path / "head"
    shell.refuse(("is no converted head", "vllm-eagle convert"), "push", trained, "org/head", convert=False)
    shell.refuse(("no hub id", "--base-model"), "push", shell.output, "org/head", convert=False, code=2)
    (shell.output / "model.safetensors").unlink()
    shell.refuse(("no safetensors",), "push", shell.output, "org/head", "--base-model", "org/model", convert=False)
    assert not hub.made
