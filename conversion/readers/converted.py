"""Heads that this package wrote, by `eagle_provenance` in their config: read back as they are.

Told from everything else first: their layout may be stock vLLM's, which other producers write too, and they carry
keys of speculators' heads (`one_word`).
"""

from __future__ import annotations

from ...errors import HeadError
from ...fingerprint import check_embedding
from ...targets.target import Target
from ..intake import Intake
from ..options import Options
from ..reading import Evidence, Reader, Reading
from ..source import Source


def recognise(source: Source) -> Evidence | None:
    provenance = source.config.get("eagle_provenance")
    if not isinstance(provenance, dict) or not isinstance(provenance.get("method"), str):
        return None
    origin = f", from a {provenance['producer']} head" if provenance.get("producer") else ""
    return Evidence([f"eagle_provenance: written by {provenance.get('converter', 'vllm-eagle')}{origin}"], strength=4)


def read(source: Source, target: Target, options: Options) -> Reading:
    from ..verify.written import written_config

    made_for = source.config.inside("eagle_provenance").inside("target")
    sizes = {"vocab_size": target.vocab_size, "hidden_size": target.hidden_size}
    odd = [f"{key} {made_for.get(key)}" for key, size in sizes.items() if made_for.get(key, size) != size]
    if odd:
        raise HeadError(
            f"the head was converted for {made_for.get('name')} with {odd[0]}, this target's is {sizes[odd[0].split()[0]]}",
            "A head drafts only for the model it was trained with",
            "Pass that target, or a head trained for this one",
        )
    check_embedding(dict(made_for.values), target.embedding.load(), 0, target.name)
    for key in source.config.values:
        source.config.get(key)  # every key of ours is a flag, and `written_config` reads them all
    intake = Intake(source)
    for name in intake.names():
        intake.take(name)
    return Reading.of(written_config(dict(source.config.values), intake.taken), intake)


READERS = (Reader("converted", "a head that vllm-eagle converted or trained", recognise, read),)
