"""What is compared: heads, and everything else that vLLM can speculate with."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HeadError, UsageError
from ..servers import flags
from ..tree import SECTION

if TYPE_CHECKING:
    from ..tree.config import Drafting

PLAIN = "plain"
#: Methods that need no model; the rest of vLLM's take one in `model`.
MODEL_FREE = ("ngram", "ngram_gpu", "suffix")


@dataclass(frozen=True)
class Method:
    """A way to decode: a name for tables, and vLLM's speculative config (None for plain decoding)."""

    name: str
    speculative: dict[str, Any] | None

    @property
    def k(self) -> int:
        return self.speculative["num_speculative_tokens"] if self.speculative else 0

    @property
    def head(self) -> str | None:
        return (self.speculative or {}).get("model")


def make_method(head: str | None, method: str | None, k: int, extra: str | None = None) -> Method:
    """A method from command-line options; `extra` is JSON that goes into vLLM's speculative config.

    Raises:
        UsageError: the options contradict each other or name nothing.
        HeadError: the head is not one that vLLM can load.
    """
    if method == "none":
        if head or extra:
            raise UsageError("--method none with a head", "Plain decoding has none", "Leave one of them out")
        return Method(PLAIN, None)
    config: dict[str, Any] = {"num_speculative_tokens": k, **_json_object(extra)}
    if method:
        config["method"] = method
    if head:
        config["model"] = head
    if "model" in config:
        check_head(config["model"])
    elif config.get("method") not in MODEL_FREE:
        raise UsageError(
            f"--method {config['method']} without a model" if "method" in config else "no head and no method",
            "Expected: --head HEAD, or a method that needs none, such as --method ngram",
            "--method none measures plain decoding",
        )
    name = Path(config["model"]).name if "model" in config else str(config["method"])
    if method and head:
        name = f"{method} {name}"
    if config.get("rejection_sample_method") == "synthetic":
        name += f" (synthetic {config.get('synthetic_acceptance_length', 'rates')})"
    drafting = drafting_of(config)
    if drafting is not None:
        name += f" {_drafting_words(drafting)}"
    return Method(f"{name}, k={config['num_speculative_tokens']}", config)


def make_methods(heads: list[str] | None, methods: list[str] | None, configs: list[str] | None, k: int) -> list[Method]:
    """Everything named on a command line, in that order.

    Raises:
        UsageError: nothing was named.
    """
    made = [make_method(head, None, k) for head in heads or ()]
    made += [make_method(None, method, k) for method in methods or ()]
    made += [make_method(None, None, k, config) for config in configs or ()]
    if not made:
        raise UsageError("nothing to compare plain decoding with", "", "Pass --head, --method or --spec-config")
    names = [method.name for method in made]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        made = [Method(f"{m.name} #{i}" if m.name in twice else m.name, m.speculative) for i, m in enumerate(made, 1)]
    return made


def engine_arguments(speculative: dict[str, Any] | None) -> dict[str, Any]:
    """vLLM's engine arguments for a speculative config that may also say under `SECTION` how to draft."""
    if speculative is None:
        return {}
    made: dict[str, Any] = {"speculative_config": {k: v for k, v in speculative.items() if k != SECTION}}
    if SECTION in speculative:
        made["additional_config"] = {SECTION: speculative[SECTION]}
    return made


def serve_command(target: str, speculative: dict[str, Any]) -> str:
    """The line that serves `target` in this way."""
    rest = {k: v for k, v in speculative.items() if k not in ("model", "num_speculative_tokens", SECTION)}
    if "model" not in speculative or rest:
        return shlex.join(["vllm", "serve", target, *flags(engine_arguments(speculative))])
    drafting = speculative.get(SECTION, {})
    command = ["vllm-eagle", "serve", target, "--head", speculative["model"]]
    command += ["-k", str(speculative["num_speculative_tokens"])]
    if tree := drafting.get("tree"):
        command += ["--tree", "auto" if tree in ("auto", {"kind": "auto"}) else json.dumps(tree)]
    return shlex.join([*command, *(["--adaptive"] if drafting.get("adaptive") else [])])


def drafting_of(config: dict[str, Any] | None) -> Drafting | None:
    """What a speculative config's `eagle` section asks for; None without one.

    Raises:
        UsageError: the section says nothing that can be drafted.
    """
    from ..tree.config import parse_drafting

    if not config or SECTION not in config:
        return None
    section = config[SECTION]
    drafting = parse_drafting({SECTION: section}, config["num_speculative_tokens"])
    if drafting is None:
        raise UsageError(f"{SECTION} is {json.dumps(section)}", 'Expected: such as {"tree": "auto"}')
    return drafting


def _drafting_words(drafting: Drafting) -> str:
    """In a table's words."""
    shape = drafting.shape
    words = "chain" if shape.kind == "chain" else f"{shape.kind} tree of depth {shape.depth}"
    return f"{words}, adaptive" if drafting.adaptive and shape.kind != "auto" else words


def check_head(head: str) -> None:
    """Refuse a local head that vLLM cannot load, before an engine is started for it.

    Raises:
        HeadError: no such folder, or a head that has not been converted.
    """
    folder = Path(head)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise HeadError(f"{head} has no config.json", "A converted head was expected", "Run vllm-eagle convert")
    elif folder.exists() or head.startswith((".", "/", "~")) or head.count("/") != 1:
        raise HeadError(f"{head} is not a folder", "Expected: a converted head, or a hub id owner/name")


def head_sha256(head: str | None) -> str | None:
    """Hash over a local head's config and weights; None for one on the hub."""
    if head is None or not Path(head).is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(f for f in Path(head).iterdir() if f.suffix in (".safetensors", ".json", ".bin")):
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def engine_options(text: str | None) -> dict[str, Any]:
    """Engine arguments from JSON on the command line.

    Raises:
        UsageError: no JSON object, or one that asks for drafting, which is a matter of one method and not of all.
    """
    options = _json_object(text, "--engine-args", '{"dtype": "float32", "enforce_eager": true}')
    additional = options.get("additional_config")
    asked = isinstance(additional, dict) and SECTION in additional
    if asked or "speculative_config" in options:
        raise UsageError(
            "--engine-args that say how to draft",
            "They hold for plain decoding too",
            f"""Say it in the method: --spec-config '{{"{SECTION}": {{"tree": "auto"}}}}'""",
        )
    return options


def _json_object(text: str | None, option: str = "--spec-config", example: str = '{"prompt_lookup_max": 4}') -> Any:
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{option} is not JSON: {error}", f"Expected: an object such as '{example}'") from None
    if not isinstance(value, dict):
        raise UsageError(f"{option} is a {type(value).__name__}", f"Expected: an object such as '{example}'")
    return value
