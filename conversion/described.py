"""What a head's config.json says, read without believing it: every value is checked before it is used."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import HeadError


class Described:
    """A config.json or an object inside it; empty where there is none."""

    def __init__(
        self, values: Mapping[str, Any] | None, where: str = "config.json", path: str = "", read: set[str] | None = None
    ) -> None:
        self.values: Mapping[str, Any] = values or {}
        self.where, self.path = where, path
        #: Paths of all keys of the config that were asked for.
        self.read: set[str] = set() if read is None else read

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(self.path + key)
        value = self.values.get(key)
        return default if value is None else value

    def number(self, key: str, kind: type = int, default: float | None = None) -> Any:
        """A positive number; `default` where nothing is said."""
        value = self.get(key)
        if value is None:
            return default
        if type(value) not in (int, kind) or not (math.isfinite(value) and value > 0):
            raise self._wrong(key, f"A positive {'whole ' if kind is int else ''}number was expected")
        return value

    def flag(self, key: str, default: bool | None = None) -> Any:
        """True or false; `default` where nothing is said."""
        value = self.get(key, default)
        if value is not default and not isinstance(value, bool):
            raise self._wrong(key, "true or false was expected")
        return value

    def text(self, key: str) -> str:
        """A word; empty where nothing is said."""
        value = self.get(key, "")
        if not isinstance(value, str):
            raise self._wrong(key, "A text was expected")
        return value

    def layers(self, key: str) -> list[int] | None:
        """A list of layer numbers; None where nothing is said, or an empty list."""
        value = self.get(key)
        if value is None or value == []:
            return None
        if not isinstance(value, list) or any(type(i) is not int or i < 0 for i in value):
            raise self._wrong(key, "A list of layers of the target was expected")
        return value

    def inside(self, key: str) -> Described:
        """The object under `key`; empty where nothing is said."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise self._wrong(key, "An object was expected")
        return Described(value, f"{key} in {self.where}", f"{self.path}{key}.", self.read)

    @property
    def architecture(self) -> str:
        """The first of `architectures`; empty where nothing is said."""
        value = self.get("architectures", [])
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self._wrong("architectures", "A list of names was expected")
        return value[0] if value else ""

    def _wrong(self, key: str, expected: str) -> HeadError:
        return HeadError(f"{self.where} says {key} is {self.values[key]!r}", expected, "Correct config.json")


def read_config(file: Path) -> dict[str, Any]:
    """The object in a config.json."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise HeadError(
            f"{file} cannot be read: {' '.join(str(error).split())[:200]}",
            "A JSON object was expected",
            "Correct it, or copy it again",
        ) from None
    if not isinstance(config, dict):
        raise HeadError(
            f"{file} holds a {type(config).__name__}", "A JSON object was expected", "Is it the head's config?"
        )
    return config
