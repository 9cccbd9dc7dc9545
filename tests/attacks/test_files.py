"""Folders and files that lie about what they are."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ..known_answer.target import WIDTH
from ..plain_heads import MAKERS


def header(entries: object, data: bytes = b"", size: int | None = None) -> bytes:
    """A safetensors file with this header, true or not."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(dtype: str = "F32", shape: object = (2, 2), offsets: object = (0, 16)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, bytes] = {
    "absurd-shape": header({"fc.weight": entry(shape=[1 << 40, 1 << 40])}, bytes(16)),
    "overflowing-shape": header({"fc.weight": entry(shape=[1 << 63, 4])}, bytes(16)),
    "negative-shape": header({"fc.weight": entry(shape=[-2, -2])}, bytes(16)),
    "offsets-outside": header({"fc.weight": entry(offsets=[0, 1 << 40])}, bytes(16)),
    "offsets-backwards": header({"fc.weight": entry(offsets=[16, 0])}, bytes(16)),
    "overlapping": header({"a": entry(), "b": entry()}, bytes(16)),
    "hole-between": header({"a": entry(), "b": entry(offsets=[32, 48])}, bytes(48)),
    "huge-header": header({}, size=1 << 62),
    "long-header": header({}, size=200 << 20),
    "header-of-text": header(b"weights!"),
    "header-not-utf8": header(b'{"\xff\xfe": 1}'),
    "header-a-list": header([1, 2]),
    "deep-header": header(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "unknown-dtype": header({"fc.weight": entry(dtype="F128")}, bytes(16)),
    "no-bytes": b"",
    "seven-bytes": b"\0" * 7,
    "duplicate-name": header(
        b'{"fc.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"fc.weight":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)
    ),
}  # fmt: skip


@pytest.mark.parametrize("verb", ["convert", "inspect"])
@pytest.mark.parametrize("case", HEADERS)
def test_headers(case, verb, shell):
    folder = shell.folder / "head"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(HEADERS[case])
    shell.refuse((), *(["inspect"] if verb == "inspect" else []), folder, convert=verb == "convert")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../x.safetensors", "..", "", 7, None])
def test_an_index_that_leaves_its_folder(name, shell):
    folder = MAKERS["safeailab-eagle"]().save(shell.folder / "head")
    save_file({"fc.weight": torch.ones(2)}, shell.folder / "secret.safetensors")
    index = {"weight_map": {"fc.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shell.refuse(("model.safetensors.index.json",), folder)


def test_an_index_without_its_shards(shell):
    folder = MAKERS["safeailab-eagle"]().save(shell.folder / "head")
    index = {"weight_map": {"fc.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shell.refuse(("model-00001-of-00002.safetensors, which is not there", "download the rest"), folder)


@pytest.mark.parametrize("what", ["model.safetensors", "config.json"])
def test_links_that_leave_the_folder(what, shell):
    folder = MAKERS["safeailab-eagle"]().save(shell.folder / "head")
    (folder / what).rename(shell.folder / "elsewhere")
    (folder / what).symlink_to(shell.folder / "elsewhere")
    shell.refuse((what, "outside the head's folder"), folder)


def test_links_in_a_hub_cache_are_how_it_works(shell):
    repository = shell.folder / "models--org--head"
    folder = MAKERS["safeailab-eagle"]().save(repository / "snapshots" / ("0" * 40))
    (repository / "blobs").mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).rename(repository / "blobs" / name)
        (folder / name).symlink_to(Path("../../blobs") / name)
    assert shell.convert(folder)[0] == 0
    written = json.loads((shell.output / "config.json").read_text())
    assert written["eagle_provenance"]["revision"] == "0" * 40


def test_a_link_to_itself(shell):
    folder = MAKERS["safeailab-eagle"]().save(shell.folder / "head")
    (folder / "model.safetensors").unlink()
    os.symlink("model.safetensors", folder / "model.safetensors")
    code, out, err = shell.convert(folder)
    assert (code, out) == (1, "")
    assert "Traceback" not in err


def test_zip_bombs(shell):
    folder = shell.folder / "head"
    folder.mkdir()
    with zipfile.ZipFile(folder / "m.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        content = io.BytesIO()
        np.save(content, np.zeros((4096, 4096), np.float32))
        archive.writestr("projection_weights.npy", content.getvalue())
    shell.refuse(("m.npz", "unpacks to", "do not compress"), folder)
    torch.save({"w": torch.zeros(1 << 20)}, shell.folder / "plain.bin")
    with (
        zipfile.ZipFile(shell.folder / "plain.bin") as plain,
        zipfile.ZipFile(folder / "m.bin", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    shell.refuse(("m.bin", "unpacks to"), folder / "m.bin")


def test_tensors_that_repeat_one_number(shell):
    """A view of one number as a matrix of petabytes is a small pickle, and ends any loop over its values."""
    (shell.folder / "head").mkdir()
    torch.save({"fc.weight": torch.ones(1).expand(1 << 25, 1 << 25)}, shell.folder / "head" / "m.bin")
    shell.refuse(("fc.weight", "has only 4 bytes"), shell.folder / "head")


def test_code_named_in_configs_is_never_run(shell, targets):
    folder = MAKERS["safeailab-eagle"]().save(shell.folder / "head")
    mark = shell.folder / "owned"
    (folder / "modeling.py").write_text(f"open({str(mark)!r}, 'w')\nclass Config: pass\n")
    described = json.loads((folder / "config.json").read_text())
    described["auto_map"] = {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Config"}
    (folder / "config.json").write_text(json.dumps(described))
    assert shell.convert(folder)[0] == 0
    assert not mark.exists()
    assert "auto_map" not in json.loads((shell.output / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "model_type": "unheard-of"}))
    shell.refuse(
        ("embedding of the target", "was not found"),
        MAKERS["safeailab-eagle"]().save(shell.folder / "good"),
        "--force",
        target=folder,
    )
    assert not mark.exists()


def test_a_config_as_deep_as_the_stack(shell):
    folder = MAKERS["safeailab-eagle"]().save(shell.folder / "head")
    (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    shell.refuse(("config.json", "cannot be read"), folder)


@pytest.mark.parametrize("name", ["../../out", "a/b", "\u0000", "x" * 5000, "\n\nerror: all is well"])
def test_names_of_tensors_are_only_names(name, shell):
    head = shell.head("safeailab-eagle")
    head.tensors[name] = torch.ones(2)
    shell.refuse(("accounts for",), head.save(shell.folder / "head"))


def test_numbers_beyond_reason(shell):
    for key in ("num_attention_heads", "head_dim", "rope_theta", "max_position_embeddings", "rms_norm_eps"):
        for value in (-1, 0, 1e400, "8", [8], {}, True, 10**30):
            head = shell.head("safeailab-eagle")
            head.config[key] = value
            folder = head.save(shell.folder / "head")
            code, out, err = shell.convert(folder, "--dry-run")
            assert code in (0, 1), (key, value)
            assert "Traceback" not in err
            assert (code == 1) == (out == "") or code == 0


def test_a_width_no_matrix_has(shell):
    head = shell.head("safeailab-eagle")
    head.tensors["fc.weight"] = torch.randn(WIDTH, 0)
    shell.refuse(("fc.weight", "is empty"), head.save(shell.folder / "head"))
