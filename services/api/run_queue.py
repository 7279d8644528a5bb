"""Requests take turns on the event loop, so that those with long steps do not hold up those with short ones.

The loop itself runs whatever is ready. While 30 requests are each ready to parse a large body or to render a page,
everyone else waits for all of them, at every trip to the database. `docs/decisions/0061-turns-on-the-event-loop.md`
has the measurements.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from heapq import heappop, heappush
from itertools import count
from time import perf_counter
from typing import Any, Generic, TypeVar

ResultT = TypeVar("ResultT")

_SLICE = 0.001
"""Seconds of work after which everything else that is ready comes first."""

_REST_FOR = 0.0005
"""For every so many seconds by which its work exceeds a slice, the queue rests as long as others have been waiting."""

_LONGEST_REST = 0.1
"""Seconds."""


class RunQueue:
    """Runs coroutines in the tasks that await them, one step of one of them at a time; a step lasts until it waits.

    What they start in other tasks does not take turns.

    The oldest request that is ready has the next turn. So requests that have begun, and may hold connections and locks,
    end before others begin, and one that waits for its client or for the database holds up no one. `others_waited` says
    how many seconds the requests that are not in the queue have been waiting lately.
    """

    def __init__(self, others_waited: Callable[[], float]) -> None:
        self._others_waited = others_waited
        # The second number: a request whose wait was cancelled may wait again.
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._tasks: set[asyncio.Task[Any] | None] = set()
        self._is_taken = False
        self._worked = self._ended = 0.0

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn now."""
        return sum(not turn.done() for *_, turn in self._waiting)

    async def run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """The result of the coroutine. Within one that takes turns already, it is a part of that."""
        task = asyncio.current_task()
        if task in self._tasks:
            return await work
        self._tasks.add(task)
        try:
            return await _InTurn(self, next(self._numbers), work)
        finally:
            self._tasks.discard(task)

    def take(self, number: int) -> "asyncio.Future[None] | None":
        """Take the turn, for the request with this number. If someone has it, returns what to wait for."""
        if self._is_taken:
            turn = asyncio.get_running_loop().create_future()
            heappush(self._waiting, (number, next(self._numbers), turn))
            return turn
        self._is_taken = True
        return None

    def pass_on(self, began: float) -> None:
        """End the turn that began then, by `perf_counter`."""
        ended = perf_counter()
        if began - self._ended > _SLICE:
            # Something else has run since then, too.
            self._worked = 0.0
        self._worked += ended - began
        self._ended = ended
        if self._worked < _SLICE:
            self._next()
            return
        rest = min((self._worked - _SLICE) / _REST_FOR * self._others_waited(), _LONGEST_REST)
        self._worked = 0.0
        loop = asyncio.get_running_loop()
        if rest:
            loop.call_later(rest, self._next)
        else:
            loop.call_soon(self._next)

    def _next(self) -> None:
        """Give the turn to the oldest request that waits for it; it continues in the next round of the loop."""
        while self._waiting:
            *_, turn = heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._is_taken = False


class _InTurn(Generic[ResultT]):
    """An awaitable that has the turn whenever its coroutine runs."""

    __slots__ = ("_number", "_queue", "_work")

    def __init__(self, queue: RunQueue, number: int, work: Coroutine[Any, Any, ResultT]) -> None:
        self._queue = queue
        self._number = number
        self._work = work

    def __await__(self) -> Generator[Any, None, ResultT]:
        error: BaseException | None = None
        while True:
            turn = self._queue.take(self._number)
            if turn is not None:
                try:
                    yield from turn
                except GeneratorExit:
                    self._close(turn)
                    raise
                except BaseException as interrupted:  # noqa: BLE001  (the coroutine is told of it)
                    turn.cancel()
                    error = interrupted
            has_turn = turn is None or not turn.cancelled()
            began = perf_counter()
            try:
                awaited = self._work.send(None) if error is None else self._work.throw(error)
            except StopIteration as end:
                result: ResultT = end.value
                return result
            finally:
                if has_turn:
                    self._queue.pass_on(began)
            error = None
            try:
                # What the coroutine waits for is for the task, as it is.
                yield awaited
            except GeneratorExit:
                self._close(None)
                raise
            except BaseException as interrupted:  # noqa: BLE001
                error = interrupted

    def _close(self, turn: "asyncio.Future[None] | None") -> None:
        """End the work, since its task has been destroyed while it waited for this turn, or for something else."""
        if turn is not None and not turn.cancel() and not turn.cancelled():
            self._queue.pass_on(perf_counter())
        self._work.close()
