"""What a proposer drafted, for those who want to watch: tests, the demo, traces. Free of vLLM."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from .lines import numbered_lines

#: Environment variable naming a file to which every proposal is appended as a line of JSON.
RECORD = "VLLM_EAGLE_RECORD"


@dataclass(frozen=True)
class Proposal:
    """What one step drafted for one request."""

    request: str
    #: Last verified position; the token behind it was just sampled, the drafts stand behind that.
    position: int
    sampled: int
    drafts: list[int]

    @property
    def known_tokens(self) -> int:
        """Tokens of the request in front of the drafts."""
        return self.position + 2


#: Called with the proposals of each step. Empty in service.
observers: list[Callable[[list[Proposal]], None]] = []


def record_to_file() -> None:
    """Append proposals to the file named in the environment, if one is."""
    file = os.environ.get(RECORD)
    if not file or observers:
        return

    def append(proposals: list[Proposal]) -> None:
        with open(file, "a") as log:
            log.writelines(json.dumps(asdict(proposal)) + "\n" for proposal in proposals)

    observers.append(append)


def read_record(file: Path) -> list[dict[int, list[int]]]:
    """For each recorded request, in the order they came: known tokens before a step -> its drafts."""
    requests: dict[str, dict[int, list[int]]] = {}
    for _, line in numbered_lines(file):
        proposal = Proposal(**json.loads(line))
        requests.setdefault(proposal.request, {})[proposal.known_tokens] = proposal.drafts
    return list(requests.values())
