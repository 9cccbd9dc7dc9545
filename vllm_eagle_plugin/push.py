"""A converted head to a hub repository, with a card whose front matter says what it drafts for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import HeadError, UsageError
from .preflight import Head, check_tensors, find_head

#: What goes along; everything else in a folder stays.
FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "README.md",
    "tokenizer*.json",
    "special_tokens_map.json",
)


def push(
    folder: Path, repository: str, *, base_model: str | None = None, private: bool = False, dry_run: bool = False
) -> str:
    """Upload the converted head in `folder` and its card to `repository` (NAME or ORGANISATION/NAME); returns its URL.

    A README.md that is there keeps its text and gets what its front matter lacks; else one is written.

    base_model: hub id of the target; by default the name that the head was converted for, if that is an id.

    Raises:
        HeadError: the folder is no converted head, or the hub refuses.
        UsageError: the target's hub id is not known.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    head = find_head(str(folder))
    if head is None:
        raise HeadError(
            f"{folder} is no converted head",
            "vLLM must be able to load what others download",
            "Run vllm-eagle convert first",
        )
    check_tensors(head)
    target = base_model or (head.provenance.get("target") or {}).get("name", "")
    if target.count("/") != 1 or target.startswith((".", "/")):
        raise UsageError(
            f"the head was converted for {target or 'a target without a name'}, which is no hub id",
            "The card names the model that it drafts for",
            "Pass --base-model ORGANISATION/NAME",
        )
    text = card(folder, head, repository, target)
    if dry_run:
        return text
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, allow_patterns=FILES, ignore_patterns="README.md")
        api.upload_file(repo_id=url.repo_id, path_in_repo="README.md", path_or_fileobj=text.encode())
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        why = " ".join(str(error).split())
        raise HeadError(
            f"the hub refused {repository}: {why}", "It needs a token that may write there", "Run hf auth login"
        ) from None
    return str(url)


def card(folder: Path, head: Head, repository: str, target: str) -> str:
    """The README.md to upload: the folder's own with its front matter completed, or a new one."""
    from huggingface_hub import ModelCard

    file = folder / "README.md"
    found = ModelCard(file.read_text(encoding="utf-8") if file.is_file() else _text(head, repository, target))
    ours = {
        "base_model": target,
        "library_name": "vllm",
        "pipeline_tag": "text-generation",
        "tags": ["speculative-decoding", "eagle", head.method],
    }
    for key, value in ours.items():
        if getattr(found.data, key, None) in (None, []):
            setattr(found.data, key, value)
    return str(found)


def _text(head: Head, repository: str, target: str) -> str:
    provenance: dict[str, Any] = head.provenance
    plugin = "" if head.config is None else "pip install vllm-eagle-plugin\n"
    verified = provenance.get("verification") or {}
    lines = [
        f"# {repository.split('/')[-1]}",
        "",
        f"A draft head ({head.method}) for [{target}](https://huggingface.co/{target}), for speculative decoding in vLLM.",
        "",
        "```bash",
        f'{plugin}vllm serve {target} --speculative-config \'{{"model": "{repository}", "num_speculative_tokens": 3}}\'',
        "```",
        "",
        f"Converted by {provenance.get('converter', 'vllm-eagle-plugin')} from a head of {provenance.get('producer', 'its trainer')}."
        + (" The converted head drafts as the trained one does." if verified else ""),
        "",
    ]
    return "\n".join(lines)
