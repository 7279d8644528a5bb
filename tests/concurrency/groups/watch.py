"""Makes groups: holds back a commit while requests arrive."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import pytest

from services.api import groups
from services.api.turns import Intent, Turns
from services.unit_of_work import UnitOfWork
from tests.api.grouped import largest


class Watch:
    """Holds back commits, and counts the requests that have joined a group."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._to_hold = 0
        self.held = 0
        self.joined = 0

    def close(self, commits: int) -> None:
        """Hold back the next commits until `open`."""
        self._open.clear()
        self._to_hold, self.held = commits, 0

    def open(self) -> None:
        self._open.set()

    async def until_held(self, commits: int) -> None:
        """Wait until that many commits are held back."""
        await until(lambda: self.held == commits)

    async def until_joined(self, request: "asyncio.Task[Any]") -> None:
        """Wait until the request, which was just started, waits for a group or has ended."""
        before = self.joined
        await until(lambda: self.joined > before or request.done())

    def install(self, patch: pytest.MonkeyPatch, *, largest_groups: bool = True) -> None:
        """With the largest groups, all that wait are in one. Otherwise, groups are as large as they usually are."""
        commit, put = UnitOfWork.commit, Turns.put

        async def commit_when_open(uow: UnitOfWork) -> None:
            if self._to_hold:
                self._to_hold -= 1
                self.held += 1
                await self._open.wait()
            await commit(uow)

        def note_arrival(turns: Turns[Any], intent: Intent[Any], *more: Any) -> None:
            self.joined += 1
            put(turns, intent, *more)

        patch.setattr(UnitOfWork, "commit", commit_when_open)
        patch.setattr(Turns, "put", note_arrival)
        if largest_groups:
            patch.setattr(groups._Committer, "_most", largest)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something has happened in this process."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def queue(
    watch: Watch, first: Coroutine[Any, Any, Any], others: Iterable[Coroutine[Any, Any, Any]]
) -> list["asyncio.Task[Any]"]:
    """Start a request, and while its commit is held back the others, which then wait for one group.

    Returns the tasks of all, the first one's first. The commit is still held back.
    """
    watch.close(1)
    tasks = [asyncio.create_task(first)]
    await watch.until_held(1)
    for other in others:
        tasks.append(asyncio.create_task(other))
        await watch.until_joined(tasks[-1])
    return tasks


async def together(
    watch: Watch, first: Coroutine[Any, Any, Any], others: Iterable[Coroutine[Any, Any, Any]]
) -> list["asyncio.Task[Any]"]:
    """Start the others while the first request's commit is held back; returns their tasks when it has its reply."""
    try:
        ahead, *tasks = await queue(watch, first, others)
    finally:
        watch.open()
    await ahead
    return tasks
