"""Cancels a coroutine at one of its awaits, chosen by number, as asyncio or an anyio scope would."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

import anyio

Manner = Callable[[Coroutine[Any, Any, Any], int], Coroutine[Any, Any, int]]
"""Runs a coroutine, cancels it at the await with that number, and returns how many awaits there were in all."""


class _Stepping:
    """Awaits the coroutine, counts its suspensions, and calls `strike` at the chosen one."""

    def __init__(self, work: Coroutine[Any, Any, Any], fatal: int) -> None:
        self._work = work
        self._fatal = fatal
        self.strike: Callable[[], object] = lambda: None
        self.awaits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        step = self._work.send
        given: Any = None
        while True:
            try:
                awaited = step(given)
            except StopIteration as end:
                return end.value
            self.awaits += 1
            if self.awaits == self._fatal:
                asyncio.get_running_loop().call_soon(self.strike)
            try:
                given = yield awaited
                step = self._work.send
            except BaseException as error:  # noqa: BLE001  (it is handed on to the coroutine)
                given = error
                step = self._work.throw


async def once(work: Coroutine[Any, Any, Any], fatal: int) -> int:
    """Cancel the task once, as `Task.cancel` and a time limit do."""
    stepping = _Stepping(work, fatal)

    async def run() -> None:
        await stepping

    task = asyncio.create_task(run())
    stepping.strike = task.cancel
    with suppress(asyncio.CancelledError):
        await task
    return stepping.awaits


async def again_and_again(work: Coroutine[Any, Any, Any], fatal: int) -> int:
    """Cancel each await from that one on, as an anyio scope does; this is how Starlette ends a streamed reply."""
    stepping = _Stepping(work, fatal)
    with anyio.CancelScope() as scope:
        stepping.strike = scope.cancel
        await stepping
    return stepping.awaits


MANNERS: dict[str, Manner] = {"once": once, "again and again": again_and_again}
