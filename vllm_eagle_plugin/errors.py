"""The one error type users see: what was found, what was expected, what to do next."""


class HeadError(ValueError):
    """A draft head, a target or a setting that cannot work.

    A `ValueError`, so that vLLM's own config validation reports it like any other bad value.
    """

    def __init__(self, found: str, expected: str = "", action: str = "") -> None:
        self.found, self.expected, self.action = found, expected, action
        super().__init__(" ".join(_sentence(part) for part in (found, expected, action) if part))


class UsageError(HeadError):
    """An option with a value that no head could make right: the command line's exit code 2."""


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!", "\n")) else text + "."
