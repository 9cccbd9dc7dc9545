"""From a target and a trained head to the `vllm serve` command that serves both. Free of vLLM.

A head that is not converted yet is converted into a cache, under a name made of the hashes of its files, its target
and the converter's version: the second start finds it there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import __version__
from .errors import UsageError
from .servers import machine_settings, vllm_command

#: Drafts of a chain, and most nodes of a tree, where neither head nor user says how many.
CHAIN, NODES = 3, 16


@dataclass(frozen=True)
class Launch:
    """A `vllm serve` command and the environment variables it needs beside the user's own."""

    target: str
    #: Options by their long names, without dashes; a dict is passed as JSON.
    options: dict[str, Any]
    #: What the user passed on, as it was written.
    extra: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        """What follows the word `vllm`."""
        ours = [part for name, value in self.options.items() for part in (f"--{name}", json.dumps(value))]
        return ["serve", self.target, *ours, *self.extra]

    @property
    def command(self) -> str:
        """A line to paste into a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, "vllm", *map(shlex.quote, self.arguments)])

    @property
    def yaml(self) -> str:
        """The same for `vllm serve --config FILE`; environment variables stand in a comment."""
        import yaml

        settings = "".join(f"# {name}={value}\n" for name, value in self.environment.items())
        content = {"model": self.target, **self.options, **_pairs(self.extra)}
        return settings + yaml.safe_dump(content, sort_keys=False)

    def start(self) -> None:
        """Become vLLM's server: it has this process's terminal and signals. Does not return.

        Raises:
            HeadError: there is no `vllm` command here.
        """
        found = vllm_command()
        os.execve(found, [found, *self.arguments], {**os.environ, **self.environment})


def launch(
    target: str,
    head: str,
    *,
    tokens: int | None = None,
    tree: str | None = None,
    adaptive: bool = False,
    extra: Sequence[str] = (),
) -> Launch:
    """The command that serves `target` with the converted `head` (a folder or hub id).

    tokens: num_speculative_tokens; by default what the head's config says, or 3, or 16 nodes of a tree.
    tree: `auto`, `static`, `dynamic`, or the JSON object that the additional config's `eagle.tree` takes.

    Raises:
        UsageError: `extra` holds an option that this function writes itself, or `tree` is not JSON.
    """
    rest = list(extra)
    if _option(rest, "--speculative-config") is not None:
        raise UsageError(
            "--speculative-config was passed on to vLLM",
            "It is written here, from --head, -k and --tree",
            "Leave it out, or use `vllm serve` itself",
        )
    options: dict[str, Any] = {
        "speculative-config": {"model": head, "num_speculative_tokens": tokens or _tokens(head, tree is not None)}
    }
    drafting: dict[str, Any] = {}
    if tree is not None:
        drafting["tree"] = _object(tree, "--tree") if tree.lstrip().startswith("{") else tree
    if adaptive:
        drafting["adaptive"] = True
    if drafting:
        additional = _object(_option(rest, "--additional-config", remove=True) or "{}", "--additional-config")
        options["additional-config"] = {**additional, "eagle": drafting}
    return Launch(target, options, tuple(rest), machine_settings())


def converted(
    head: str,
    target: str,
    options: Any,
    *,
    verify: bool = True,
    config: Path | None = None,
    revision: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """`head` as vLLM serves it: itself where it is converted already, else a folder of the cache.

    `options` are the `conversion.options.Options` that say what its files do not. `say` is told what is done.

    Raises:
        HeadError: as `conversion.convert`; nothing is left in the cache then.
    """
    from .conversion import convert
    from .preflight import find_head

    if find_head(head, revision) is not None:
        return head
    folder = cache() / _key(head, target, options, config, revision)
    if (folder / "config.json").is_file() and (_verified(folder) or not verify):
        say(f"head    {folder} (converted earlier)")
        return str(folder)
    say(f"converting {head} for {target}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = convert(head, target, folder, options, force=True, verify=verify, config=config, revision=revision)
    say(f"head    {folder} ({done.detection.reader.name}, {done.layout.why})")
    return str(folder)


def cache() -> Path:
    """Where converted heads are kept: under XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-eagle" / "heads"


def _key(head: str, target: str, options: Any, config: Path | None, revision: str | None) -> str:
    from .conversion.understand import open_source
    from .targets.target import read_target

    files = open_source(head, config, revision).checksums
    facts = [__version__, files, read_target(target).fingerprint(), repr(options)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def _raw(head: str) -> dict[str, Any]:
    from .preflight import find_head

    found = find_head(head)
    return found.raw if found is not None else {}


def _verified(folder: Path) -> bool:
    return bool((_raw(str(folder)).get("eagle_provenance") or {}).get("verification"))


def _tokens(head: str, tree: bool) -> int:
    """How many tokens to draft where the user does not say."""
    from .preflight import find_head

    if tree:
        return NODES
    found = find_head(head)
    limit = found.config.max_draft_tokens if found is not None and found.config is not None else None
    methods = (_raw(head).get("speculators_config") or {}).get("proposal_methods") or [{}]
    return limit or methods[0].get("speculative_tokens") or CHAIN


def _option(arguments: list[str], name: str, remove: bool = False) -> str | None:
    """The value of an option among `arguments`, written `--name value` or `--name=value`; None: not there."""
    for index, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        if key == name:
            count = 1 if equals else 2
            given = value if equals else "".join(arguments[index + 1 : index + 2])
            if remove:
                del arguments[index : index + count]
            return given
    return None


def _object(text: str, option: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UsageError(f"{option} is {text}", "A JSON object was expected", 'As in {"kind": "dynamic", "depth": 4}')
    return value


def _pairs(arguments: Sequence[str]) -> dict[str, Any]:
    """Passed-on arguments as keys of vLLM's config file; an option without a value is true."""
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        key, equals, value = rest.pop(0).partition("=")
        if not key.startswith("-"):
            raise UsageError(f"{key} stands by itself", "Options were expected", "Write it as --option value")
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("-"):
            values.append(rest.pop(0))
        found[key.lstrip("-")] = True if not values else values[0] if len(values) == 1 else values
    return found
