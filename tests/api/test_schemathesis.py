"""A few generated requests, good and bad, to every operation, as callers of all roles in turn; see `tests.fuzz`."""

from collections.abc import Iterator

import pytest

from services.settings import Settings
from tests.fuzz.checking import try_out
from tests.fuzz.world import CALLERS, World, open_world

EXAMPLES = 14
"""For each operation: about two for each caller. `python -m tests.fuzz` sends more."""


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    with open_world(settings) as opened:
        yield opened


def test_no_generated_request_ends_in_a_5xx_or_in_an_undocumented_reply(world: World) -> None:
    tried = [try_out(world, operation, CALLERS, EXAMPLES) for operation in world.operations()]
    assert len(tried) > 100
    taken = [one.label for one in tried if any(status < 300 for status in one.statuses)]
    refused = [one.label for one in tried if any(400 <= status < 500 for status in one.statuses)]
    assert len(taken) >= 40, taken
    assert len(refused) >= 100, {one.label for one in tried} - set(refused)
