"""Work that cancellation does not stop, tasks that must last, and the end of tasks that swallow a cancellation."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")

_CANCEL_AGAIN = 0.5
"""Seconds after which a task is cancelled once more."""

_running: set[asyncio.Task[Any]] = set()


async def shielded(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of the work. A cancelled caller stops waiting immediately; the work continues in the background.

    Cancellation is not delayed, because an anyio scope would also cancel every later await of the caller. Errors of
    work that continues in the background are lost, so the work itself must log what matters. It must be bounded in
    time.
    """
    task = asyncio.create_task(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return await asyncio.shield(task)


async def settled() -> None:
    """Wait for this event loop's shielded work whose callers were cancelled."""
    loop = asyncio.get_running_loop()
    while left := [task for task in _running if task.get_loop() is loop and task is not asyncio.current_task()]:
        await asyncio.wait(left)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks, and return when all have ended. What they raise is not raised here.

    It cancels repeatedly: redis-py swallows a cancellation while it connects, and the task would keep running.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)


class Lasting:
    """A task that must run until it is told to end. If it ends before, `complain` is called with the reason.

    It runs in a copy of the current context, or in the one that is given.
    """

    def __init__(
        self,
        work: Coroutine[Any, Any, None],
        name: str,
        complain: Callable[[str], None],
        context: Context | None = None,
    ) -> None:
        self._complain = complain
        self.task = asyncio.get_running_loop().create_task(work, name=name, context=context)
        self.task.add_done_callback(self._ended)

    async def end(self) -> None:
        """Cancel it, and return when it has ended."""
        self.task.remove_done_callback(self._ended)
        await end(self.task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._complain("it was cancelled" if task.cancelled() else repr(task.exception()))
