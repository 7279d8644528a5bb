"""Requests take turns on the event loop: one long step at a time, the oldest request first, and no turn is lost."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from time import perf_counter

import pytest

from services.api import run_queue
from services.api.run_queue import RunQueue

LONG = 2 * run_queue._SLICE
PROMPTLY = 20.0
"""Seconds within which something happens that nothing keeps."""


def work(seconds: float) -> None:
    """Occupy the event loop."""
    until = perf_counter() + seconds
    while perf_counter() < until:
        pass


class Rounds:
    """Inside the block: the number of rounds of the event loop."""

    def __enter__(self) -> "Rounds":
        self.number, self._ends = 0, False
        self._count()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True

    def _count(self) -> None:
        self.number += 1
        if not self._ends:
            asyncio.get_running_loop().call_soon(self._count)


def calm() -> RunQueue:
    return RunQueue(lambda: False)


async def some_steps(number: int, note: Callable[[], None], seconds: float = LONG) -> None:
    for _ in range(number):
        work(seconds)
        note()
        await asyncio.sleep(0)


async def test_between_two_long_steps_comes_whatever_else_is_ready() -> None:
    queue, steps = calm(), []
    with Rounds() as rounds:
        every = [queue.run(some_steps(3, lambda: steps.append(rounds.number))) for _ in range(10)]
        await asyncio.gather(*every)
    assert len(steps) == 30
    # One round to give the next one its turn, and one to look at what is ready.
    assert all(after - before >= 2 for before, after in pairwise(steps)), steps


async def test_short_steps_need_not_wait_for_each_other() -> None:
    queue, steps = calm(), []
    with Rounds() as rounds:
        await asyncio.gather(*(queue.run(some_steps(1, lambda: steps.append(rounds.number), 0.0)) for _ in range(10)))
    assert steps[0] == steps[-1]


async def test_the_oldest_request_that_is_ready_comes_first() -> None:
    queue, order, released = calm(), [], asyncio.Event()

    async def request(number: int) -> None:
        work(LONG)
        if number == 0:
            await released.wait()
        elif number == 3:
            released.set()
        order.append(number)

    await asyncio.gather(*(queue.run(request(number)) for number in range(8)))
    # The first one waited for something else, and held up nobody meanwhile.
    assert [one for one in order if one] == list(range(1, 8))
    assert order.index(3) < order.index(0) < order.index(6), order


async def test_results_and_errors_are_those_of_the_work() -> None:
    queue = calm()

    async def succeed() -> str:
        await asyncio.sleep(0.001)
        return "done"

    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("nothing there")

    assert await queue.run(succeed()) == "done"
    with pytest.raises(LookupError, match="nothing there"):
        await queue.run(fail())
    assert await queue.run(succeed()) == "done"


@pytest.mark.parametrize("rounds", range(6))
async def test_a_cancelled_request_is_told_and_leaves_its_turn_to_the_next(rounds: int) -> None:
    queue, told, done = calm(), [], []

    async def request() -> None:
        try:
            await some_steps(5, lambda: None)
        except asyncio.CancelledError:
            told.append(True)
            raise

    tasks = [asyncio.create_task(queue.run(request())) for _ in range(3)]
    for _ in range(1 + rounds):
        await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[0].cancel()
    async with asyncio.timeout(PROMPTLY):
        await tasks[2]
        await queue.run(some_steps(1, lambda: done.append(True)))
    assert tasks[0].cancelled()
    assert tasks[1].cancelled()
    assert done == [True]
    assert len(told) <= 2


async def test_a_time_limit_within_the_work_ends_it() -> None:
    queue = calm()

    async def request() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "too late"
        return "in time"

    async with asyncio.timeout(PROMPTLY):
        answers = await asyncio.gather(*(queue.run(request()) for _ in range(2)))
    assert answers == ["too late", "too late"]


async def test_work_within_work_has_the_same_turn() -> None:
    queue = calm()

    async def inner() -> int:
        await asyncio.sleep(0)
        return 1

    async def outer() -> int:
        return await queue.run(inner()) + await queue.run(inner())

    async with asyncio.timeout(PROMPTLY):
        assert await asyncio.gather(*(queue.run(outer()) for _ in range(5))) == [2] * 5


@pytest.mark.parametrize("hurry", [True, False])
async def test_after_a_long_step_the_queue_rests_while_others_are_in_a_hurry(hurry: bool) -> None:
    queue, steps = RunQueue(lambda: hurry), []

    def note() -> None:
        steps.append(perf_counter())

    def request() -> Awaitable[None]:
        return queue.run(some_steps(1, note))

    await asyncio.gather(request(), request(), request())
    pauses = [after - before for before, after in pairwise(steps)]
    rest = run_queue._REST * (LONG - run_queue._SLICE)
    if hurry:
        assert min(pauses) >= rest, pauses
    else:
        # One of them is not held up by chance.
        assert min(pauses) < rest, pauses
