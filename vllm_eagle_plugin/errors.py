"""The one error type users see: what was found, what was expected, what to do next."""


class HeadError(ValueError):
    """A draft head, a target or a setting that cannot work.

    A `ValueError`, so that vLLM's own config validation reports it like any other bad value.
    """

    def __init__(self, found: str, expected: str = "", action: str = "") -> None:
        self.found, self.expected, self.action = found, expected, action
        super().__init__(" ".join(_sentence(part) for part in (found, expected, action) if part))


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else text + "."
