"""Tasks and their ends: work that no cancellation stops, and tasks that end whatever they do with it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")

_CANCEL_AGAIN = 0.5
"""Seconds after which a task is cancelled once more."""

_running: set[asyncio.Task[Any]] = set()


async def shielded(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of the work. A caller that is cancelled meanwhile leaves at once, and the work goes on behind it.

    Cancelling is not held up: under an anyio scope every later await of the caller is cancelled, too. What the work
    raises then is lost, so it says itself what someone should know. It must be bounded in time.
    """
    task = asyncio.create_task(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return await asyncio.shield(task)


async def settled() -> None:
    """Wait for the work of this event loop that nobody waits for any more."""
    loop = asyncio.get_running_loop()
    while left := [task for task in _running if task.get_loop() is loop and task is not asyncio.current_task()]:
        await asyncio.wait(left)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks, and return when all have ended. What they raise is not raised here.

    Again and again: redis-py swallows a cancellation that meets it while it connects, and the task would go on.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)
