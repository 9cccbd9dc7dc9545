"""Files that are no heads, and outputs that must not be harmed: one clear error, nothing run, nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm_eagle_plugin.conversion import write

from .known_answer.target import WIDTH
from .plain_heads import MAKERS
from .shell import Shell, assert_one_error


@pytest.fixture
def shell(tmp_path, targets, monkeypatch, capfd) -> Shell:
    return Shell(tmp_path, targets(), monkeypatch, capfd)


def write_bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir()
        (folder / name).write_bytes(content)
        return folder

    return make


def cut(name: str, save: Callable[[Path], None]) -> Callable[[Path], Path]:
    """A file of weights without its last third."""

    def make(folder: Path) -> Path:
        folder.mkdir()
        save(folder / name)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) * 2 // 3])
        return folder

    return make


def whole(name: str, save: Callable[[Path], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir()
        save(folder / name)
        return folder

    return make


def beside_config(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        MAKERS["safeailab-eagle"]().save(folder)
        (folder / "config.json").write_bytes(content)
        return folder

    return make


def twice(folder: Path) -> Path:
    MAKERS["projection"]().save(folder)
    save_file({"projection_bias": torch.ones(32)}, folder / "more.safetensors")
    return folder


WEIGHTS = {"projection_weights": torch.randn(32, WIDTH), "step": 3}
ARRAYS = {"projection_weights": np.ones((32, WIDTH), np.float32)}
FILES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "absent": (lambda folder: folder, ("does not exist",)),
    "empty-folder": (lambda folder: folder.mkdir() or folder, ("holds no weights", "downloaded whole?")),
    "unknown-kind": (lambda f: write_bytes("head.gguf", b"GGUF")(f) / "head.gguf", ("head.gguf", "unknown kind")),
    "cut-safetensors": (cut("m.safetensors", lambda f: save_file(ARRAY_TENSORS, f)), ("m.safetensors", "cannot be read")),
    "cut-pt": (cut("m.pt", lambda f: torch.save(WEIGHTS, f)), ("m.pt", "cannot be read", "download it again")),
    "cut-bin": (
        cut("m.bin", lambda f: torch.save(WEIGHTS, f, _use_new_zipfile_serialization=False)), ("m.bin", "cannot be read")
    ),
    "cut-npz": (cut("m.npz", lambda f: np.savez(f, **ARRAYS)), ("m.npz", "cannot be read")),
    "garbage-pt": (write_bytes("m.pt", b"garbage"), ("m.pt", "cannot be read")),
    "array-as-npz": (whole("m.npz", lambda f: np.save(f.open("wb"), np.ones(3))), ("m.npz", "cannot be read")),
    "objects-npz": (
        whole("m.npz", lambda f: np.savez(f, layers=np.array([{}], dtype=object))), ("array layers", "Python objects")
    ),
    "texts-npz": (whole("m.npz", lambda f: np.savez(f, layers=np.array(["a", "b"]))), ("layers in m.npz", "numbers")),
    "texts-pt": (whole("m.pt", lambda f: torch.save({**WEIGHTS, "names": ["a"]}, f)), ("names in m.pt", "numbers")),
    "ragged-json": (write_bytes("m.json", b'{"projection_weights": [[1], [1, 2]]}'), ("projection_weights in m.json",)),
    "list-json": (write_bytes("m.json", b"[1, 2]"), ("m.json holds a list", "dictionary")),
    "no-tensors": (write_bytes("m.json", b'{"loss": 0.5}'), ("m.json", "holds no tensors")),
    "sparse-pt": (whole("m.pt", lambda f: torch.save({"w": torch.eye(3).to_sparse()}, f)), ("w in m.pt", "sparse")),
    "stored-twice": (twice, ("projection_bias", "more.safetensors", "stored once")),
    "config-no-json": (beside_config(b"{num_heads: 8}"), ("config.json cannot be read", "JSON object")),
    "config-text": (beside_config(b'"llama"'), ("config.json holds a str", "JSON object")),
    "config-latin-1": (beside_config('{"name": "Zo\u00eb"}'.encode("latin-1")), ("config.json cannot be read", "utf-8")),
}  # fmt: skip
ARRAY_TENSORS = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}


@pytest.mark.parametrize("verb", ["convert", "inspect"])
@pytest.mark.parametrize("case", FILES)
def test_unreadable_files(case, verb, shell):
    make, what = FILES[case]
    head = make(shell.folder / "head")
    shell.refuse(what, *(["inspect"] if verb == "inspect" else []), head, convert=verb == "convert")


class Attack:
    """Creates a file when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickles_run_nothing(zipped, shell):
    mark = shell.folder / "owned"
    torch.save({"a": Attack(mark)}, shell.folder / "head.bin", _use_new_zipfile_serialization=zipped)
    shell.refuse(("head.bin", "run code", "torch.save(head.state_dict(), path)"), shell.folder / "head.bin")
    assert not mark.exists()
    torch.load(shell.folder / "head.bin", weights_only=False)
    assert mark.exists(), "the attack would have worked"


def occupied(shell: Shell, content: str) -> None:
    shell.output.mkdir()
    (shell.output / "config.json").write_text(content)


OUTPUTS: dict[str, tuple[Callable[[Shell], Any], list[str], tuple[str, ...]]] = {
    "exists": (lambda s: occupied(s, '{"eagle_provenance": {}}'), [], ("exists and is not empty", "--force")),
    "not-ours": (lambda s: occupied(s, '{"model_type": "llama"}'), ["--force"], ("other than a converted head",)),
    "ours-and-more": (
        lambda s: (occupied(s, '{"eagle_provenance": {}}'), (s.output / "thesis.tex").write_text("x")),
        ["--force"],
        ("other than a converted head",),
    ),
    "file": (lambda s: s.output.write_text("x"), ["--force"], ("out is a file",)),
    "below-a-file": (lambda s: s.output.write_text("x"), ["-o", "out/head"], ("out is a file",)),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_that_must_not_be_touched(case, shell):
    prepare, options, what = OUTPUTS[case]
    prepare(shell)
    shell.monkeypatch.chdir(shell.folder)
    shell.refuse(what, shell.head("safeailab-eagle").save(shell.folder / "head"), *options)


@pytest.mark.parametrize("earlier", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("stop", ["full", "interrupt", "full-at-rename", "interrupt-at-rename"])
def test_interrupted_writes_leave_nothing(stop, earlier, shell):
    head = shell.head("safeailab-eagle").save(shell.folder / "head")
    if earlier:
        assert shell.convert(head)[0] == 0
    before = shell.files()
    rename = Path.rename

    def fail(*arguments: Any, **_: Any) -> Any:
        if "rename" in stop and Path(arguments[1]) != shell.output:
            return rename(*arguments)
        if "rename" not in stop:
            Path(arguments[0]).write_bytes(b"half")
        elif Path(arguments[0]).name == "head":  # the way back
            return rename(*arguments)
        raise KeyboardInterrupt if "interrupt" in stop else OSError(28, "No space left on device")

    if "rename" in stop:
        shell.monkeypatch.setattr(Path, "rename", fail)
    else:
        shell.monkeypatch.setattr(write, "write_tensors", fail)
    if "interrupt" in stop:
        code, out, err = shell.convert(head, "--force")
        assert (code, out) == (130, "")
        assert "Traceback" not in err
        assert shell.files() == before
    else:
        shell.refuse(("out cannot be written", "No space left"), head, "--force")


def test_dry_run_writes_nothing(shell):
    head = shell.head("feature").save(shell.folder / "head")
    before = shell.files()
    code, out, err = shell.convert(head, "--token-pairing", "next", "--dry-run")
    assert (code, err, shell.files()) == (0, "", before)
    assert "would be written" in out
    assert "[hidden, embed] to [embed, hidden]" in out  # not taken for markup


def test_force_replaces_a_converted_head(shell):
    head = shell.head("safeailab-eagle").save(shell.folder / "head")
    other = shell.head("safeailab-eagle").save(shell.folder / "other")
    assert shell.convert(head)[0] == 0
    first = shell.files()
    code, out, _ = shell.convert(other, "--force", "--json")
    assert code == 0
    assert json.loads(out)["written"] is True
    assert set(shell.files()) == set(first)
    assert load_file(shell.output / "model.safetensors")["fc.weight"].equal(
        load_file(other / "model.safetensors")["fc.weight"]
    )


def test_tables_tied_in_a_pickle(shell):
    tensors = shell.head("surgery").tensors
    own = tensors["embeddings.weight"] + 0.1
    (shell.folder / "head").mkdir()
    torch.save({**tensors, "embeddings.weight": own, "lm_head.weight": own}, shell.folder / "head" / "m.bin")
    assert shell.convert(shell.folder / "head")[0] == 0
    written = load_file(shell.output / "model.safetensors")
    assert written["lm_head.weight"].equal(written["embed_tokens.weight"])


def test_names_are_no_markup(shell):
    head = shell.head("projection")
    head.tensors["[/bold]"] = torch.ones(1)
    code, out, err = shell.run("inspect", head.save(shell.folder / "head"))
    assert (code, err) == (0, "")
    assert "[/bold]" in out


def test_in_a_process_of_its_own(tmp_path):
    arguments = ["convert", "nowhere", "--target", "t", "-o", "out", "--json"]
    command = [sys.executable, "-m", "vllm_eagle_plugin.cli", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert_one_error(done.returncode, done.stdout, done.stderr, ("nowhere does not exist",))
    assert not list(tmp_path.iterdir())
