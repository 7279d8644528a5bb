"""Requests take turns on the event loop: one long step at a time, the oldest request first, and no turn is lost."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter
from typing import Any

import pytest

from services.api import run_queue
from services.api.run_queue import RunQueue
from tests.rounds import Rounds

LONG = 2 * run_queue._SLICE
PROMPTLY = 20.0
"""Seconds within which something happens that nothing keeps."""


def work(seconds: float) -> None:
    """Occupy the event loop."""
    until = perf_counter() + seconds
    while perf_counter() < until:
        pass


def calm() -> RunQueue:
    return RunQueue(lambda: 0.0)


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


async def test_short_steps_need_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_queue, "_SLICE", 1000.0)
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
    # The first one waited for something else, and held up no one meanwhile.
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
    queue, begun, told = calm(), [], []

    async def request(number: int) -> None:
        begun.append(number)
        try:
            await some_steps(5, lambda: None)
        except asyncio.CancelledError:
            # To clean up, it waits once more.
            await asyncio.sleep(0)
            told.append(number)
            raise

    tasks = [asyncio.create_task(queue.run(request(number))) for number in range(3)]
    for _ in range(1 + rounds):
        await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[0].cancel()
    async with asyncio.timeout(PROMPTLY):
        await asyncio.wait(tasks)
        await queue.run(some_steps(1, lambda: told.append(99)))
    assert [task.cancelled() for task in tasks] == [True, True, False]
    assert sorted(told) == sorted([*(number for number in begun if number < 2), 99])


@pytest.mark.parametrize("limited", [True, False])
async def test_a_request_whose_wait_for_its_turn_ends_early_can_wait_again(limited: bool) -> None:
    queue, cleaned_up = calm(), []
    ready = asyncio.Event()

    async def request() -> None:
        try:
            async with asyncio.timeout(0.05 if limited else None):
                await ready.wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            cleaned_up.append(True)

    task = asyncio.create_task(queue.run(request()))
    await asyncio.sleep(0)
    assert queue.take(-1) is None
    ready.set()
    await asyncio.sleep(0.1)
    assert not cleaned_up
    if not limited:
        task.cancel()
        await asyncio.sleep(0)
    queue.pass_on(perf_counter())
    async with asyncio.timeout(PROMPTLY):
        await asyncio.wait([task])
        assert await queue.run(asyncio.sleep(0, "the next one")) == "the next one"
    assert cleaned_up == [True]
    if limited:
        assert isinstance(task.exception(), TimeoutError)
    else:
        assert task.cancelled()


@pytest.mark.parametrize("waits_for_its_turn", [True, False])
async def test_a_request_that_is_destroyed_while_it_waits_leaves_the_turn_to_others(waits_for_its_turn: bool) -> None:
    queue, ended = calm(), []

    async def request() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)

    running = queue.run(request())
    if waits_for_its_turn:
        assert queue.take(-1) is None
    running.send(None)
    running.close()
    if waits_for_its_turn:
        queue.pass_on(perf_counter())
    else:
        assert ended == [True]
    async with asyncio.timeout(PROMPTLY):
        assert await queue.run(asyncio.sleep(0, "the next one")) == "the next one"


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


@pytest.mark.parametrize("waited", [0.02, 0.0])
async def test_after_a_long_step_the_queue_rests_as_long_as_others_have_waited(
    waited: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def call_later_and_note(delay: float, *call: Any, **options: Any) -> asyncio.TimerHandle:
        rests.append(delay)
        return call_later(delay, *call, **options)

    monkeypatch.setattr(loop, "call_later", call_later_and_note)
    queue = RunQueue(lambda: waited)
    await asyncio.gather(*(queue.run(some_steps(1, lambda: None)) for _ in range(3)))
    if waited:
        assert rests, "there was no rest"
        assert min(rests) >= waited * (LONG - run_queue._SLICE) / run_queue._REST_FOR
        assert max(rests) <= run_queue._LONGEST_REST
    else:
        assert not rests
