"""What vLLM raises when it will not or cannot, in one line."""

from __future__ import annotations

from ..errors import HeadError


def reason(error: BaseException) -> str:
    """The first telling line of an error of vLLM's, looking through what it was raised from."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    ours = next((e for e in chain if isinstance(e, HeadError)), None)
    if ours is not None:
        return str(ours).rstrip(".")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydantic: "1 validation error for X", the field, then what is wrong
    telling = [line for line in lines if not line.endswith("Config") and "errors.pydantic.dev" not in line]
    text = telling[0] if telling else type(error).__name__
    return text.removeprefix("Value error, ").split(" [type=")[0].rstrip(".")


def refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request that it will not serve; newer versions have a class for it."""
    import vllm.exceptions as exceptions

    return (ValueError, *filter(None, [getattr(exceptions, "VLLMClientError", None)]))
