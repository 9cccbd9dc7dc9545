"""Heads as their producers write them, by code that shares nothing with the readers."""

from __future__ import annotations

from . import checkpoints, eagle1, eagle3, exports, peagle, plain, wrappers
from .layout import Fixture

#: One fixture for each reader, by its name, and its variants, as `reader: variant`.
FIXTURES: dict[str, Fixture] = {
    name: fixture
    for module in (eagle1, wrappers, eagle3, exports, peagle, plain, checkpoints)
    for name, fixture in module.FIXTURES.items()
}
#: One fixture for each reader.
PRODUCERS = {name: fixture for name, fixture in FIXTURES.items() if name == fixture.reader}
#: Those whose output is served; the others must come out equal to one of them.
SERVED = {name: fixture for name, fixture in FIXTURES.items() if fixture.same_as is None and fixture.exact}
