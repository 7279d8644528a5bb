"""`python -m tests.faults.stubborn_worker MANNER`: the product's worker with a harmful handler of ticks.

Each manner is a way of not ending, which the handler shows at the first attempt of a tick about "bad"; other ticks take
effect. With any other word, the handler cancels the worker's task of that name.
"""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

import services.outbox.engine.service
import services.subscriptions
import worker.heartbeat
from services.outbox.events import Claimed
from services.outbox.subscription import Subscription
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import Tick, TickHandler

FOR_EVER = 3600.0

BEAT = 0.2
"""Seconds between beats."""


async def block() -> None:
    """Block the event loop, as a call that is not async does."""
    time.sleep(FOR_EVER)  # noqa: ASYNC251


async def hang() -> None:
    """Wait for something that does not come."""
    await asyncio.Event().wait()


async def stay() -> None:
    """Wait, and swallow cancellations."""
    while True:
        try:
            await asyncio.sleep(FOR_EVER)
        except asyncio.CancelledError:
            continue


async def hog() -> None:
    """Never release the interpreter, so that no other thread runs: this pattern outlasts the universe."""
    re.match("(a+)+$", "a" * 100 + "b")


async def die() -> None:
    """End the process at once, as if it were out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


async def cancel_itself() -> None:
    """Cancel the task that it runs in, which is the poll loop's."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(FOR_EVER)


MANNERS: dict[str, Callable[[], Awaitable[None]]] = {
    "block": block,
    "hang": hang,
    "stay": stay,
    "hog": hog,
    "die": die,
    "cancel itself": cancel_itself,
}


async def cancel(name: str) -> None:
    """Cancel a task of the worker."""
    for task in asyncio.all_tasks():
        if task.get_name() == name:
            task.cancel()


def main(manner: str) -> None:
    ticks = TickHandler()
    harm = MANNERS.get(manner, lambda: cancel(manner))

    async def handle(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await ticks(uow, events)
        if any(claimed.event.name == "bad" and claimed.attempts == 0 for claimed in events):
            await harm()

    services.subscriptions.SUBSCRIPTIONS = (Subscription(Tick, handle),)
    worker.heartbeat.INTERVAL = BEAT
    services.outbox.engine.service._DIED_AGAIN = BEAT
    # Imported here, because it takes the handlers as they are at that time.
    from worker.__main__ import main as work

    work()


if __name__ == "__main__":
    main(sys.argv[1])
