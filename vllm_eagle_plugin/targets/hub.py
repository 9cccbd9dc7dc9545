"""Heads and targets by hub id, offline too once they are in the cache."""

from __future__ import annotations

from pathlib import Path

from ..errors import HeadError


def download(name: str, patterns: list[str], revision: str | None = None) -> Path:
    """The snapshot of a hub repository; its folder is named by the commit, which pins it.

    Raises:
        HeadError: it is no hub id, or can neither be downloaded nor found in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    found = f"{name}{f' at {revision}' if revision else ''}"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise HeadError(
            f"{found} is neither a folder nor a model that can be downloaded: {str(error).splitlines()[0][:200]}",
            "A local folder or a hub id was expected",
            "Check the name and the network",
        ) from None


def commit_of(folder: Path) -> str | None:
    """The commit of a downloaded snapshot; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None
