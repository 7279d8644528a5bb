"""Decides which requests of a test are in one group."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from httpx2 import Response

from services.api import groups
from services.api.turns import Intent, Turns


async def eventually(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110  (there is no event for it)
            await asyncio.sleep(0.001)


def largest(committer: groups._Committer) -> int:
    """As many requests as a group may have by its settings, so that all that wait are in one."""
    return committer._settings.group_commit_size


class Gate:
    """While it is closed, no group begins; then, one takes all it may. Notes how many requests each attempt has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.closed = False
        self.waiting = 0
        self.attempts: list[int] = []
        self._committers: set[groups._Committer] = set()
        take, attempt, run = Turns.take, groups._Committer._attempt, groups._Committer._run

        def take_unless_closed(turns: Turns[Any], most: int) -> list[Intent[Any]]:
            self.waiting = len(turns)
            return [] if self.closed else take(turns, most)

        async def noted(committer: groups._Committer, intents: Sequence[Intent[Any]]) -> list[Intent[Any]]:
            self.attempts.append(len(intents))
            return await attempt(committer, intents)

        async def run_noted(committer: groups._Committer) -> None:
            self._committers.add(committer)
            await run(committer)

        monkeypatch.setattr(Turns, "take", take_unless_closed)
        monkeypatch.setattr(groups._Committer, "_most", largest)
        monkeypatch.setattr(groups._Committer, "_attempt", noted)
        monkeypatch.setattr(groups._Committer, "_run", run_noted)

    @asynccontextmanager
    async def holding(self, number: int) -> AsyncIterator[None]:
        """The block starts this many requests, which form one group when it ends."""
        self.closed = True
        yield
        await self.until(number)
        self.open()

    async def until(self, number: int) -> None:
        """Wait until this many requests wait."""
        await eventually(lambda: self.waiting >= number)

    def open(self) -> None:
        self.closed = False
        for committer in self._committers:
            # It found nothing to take, and believes that nothing waits.
            committer._idle.clear()
            committer._wanted.set()


async def together(gate: Gate, *requests: Any) -> list[Response]:
    """The replies to requests that are in one group, in this order."""
    async with gate.holding(len(requests)):
        tasks = []
        for number, request in enumerate(requests, start=1):
            tasks.append(asyncio.create_task(request))
            await gate.until(number)
    return list(await asyncio.gather(*tasks))
