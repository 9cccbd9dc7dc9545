"""Hub ids: found in the cache without a network, pinned, recorded; and refused in one line where they are not."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import constants

from .plain_heads import MAKERS
from .shell import Shell

COMMIT = "a" * 40


@pytest.fixture
def shell(tmp_path, targets, monkeypatch, capfd) -> Shell:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return Shell(tmp_path, targets(), monkeypatch, capfd)


def cached(shell: Shell, name: str) -> None:
    """A head as a download leaves it in the cache."""
    repository = shell.folder / "cache" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    MAKERS["safeailab-eagle"]().save(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_head_from_the_cache(revision, shell):
    cached(shell, "org/head")
    code, _, err = shell.convert("org/head", *(["--revision", revision] if revision else []))
    assert (code, err) == (0, "")
    provenance = json.loads((shell.output / "config.json").read_text())["eagle_provenance"]
    assert provenance["revision"] == COMMIT
    assert set(provenance["files"]) == {"model.safetensors", "config.json"}


def test_what_is_not_there(shell):
    shell.refuse(("org/other is neither a folder", "hub id"), "org/other")
    cached(shell, "org/head")
    shell.refuse(("org/head at v2 is neither",), "org/head", "--revision", "v2")
    shell.refuse(
        ("org/missing is neither a folder",), MAKERS["projection"]().save(shell.folder / "h"), target="org/missing"
    )


def test_a_revision_needs_an_id(shell):
    folder = MAKERS["safeailab-eagle"]().save(shell.folder / "head")
    shell.refuse(("--revision v2 was given",), folder, "--revision", "v2", code=2)
