"""Loss and held-out acceptance over the tokens seen, from the logs of runs."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from .run_folder import RunFolder

_SMOOTHED = 20


def draw(outputs: list[Path], picture: Path) -> None:
    """Draw the runs in the output folders `outputs` into `picture`.

    Raises:
        UsageError: a folder holds no run, or the picture's kind is unknown.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    if picture.suffix not in (".svg", ".png", ".pdf"):
        raise UsageError(f"{picture.name} is of an unknown kind", "A name ending in .svg, .png or .pdf was expected")
    logs = {output: RunFolder(output).read_log() for output in outputs}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for output, log in logs.items():
        steps = [row for row in log if row.get("event") == "step"]
        if not steps:
            raise UsageError(f"{output} holds no log of a run", "An output folder of `train head` was expected")
        tokens = [row["answer_tokens"] for row in steps]
        losses = [row["loss"] for row in steps]
        left.plot(tokens, _smooth(losses), label=output.name)
        seen = dict(zip((row["step"] for row in steps), tokens, strict=True))
        measured = [row for row in log if row.get("event") == "held_out" and row["step"] in seen]
        right.plot(
            [seen[row["step"]] for row in measured],
            [row["acceptance_length"] for row in measured],
            marker="o",
            label=output.name,
        )
    left.set(title="loss", xlabel="answer tokens seen")
    right.set(title="acceptance length on held-out conversations", xlabel="answer tokens seen")
    for axes in (left, right):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(picture)
    pyplot.close(figure)


def _smooth(values: list[float]) -> list[float]:
    """Running mean over the last few steps."""
    means = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - _SMOOTHED) : end]
        means.append(sum(window) / len(window))
    return means
