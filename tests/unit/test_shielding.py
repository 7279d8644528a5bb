"""Work that cancellation does not stop, and tasks that end even if they swallow a cancellation."""

import asyncio

import pytest

from services import shielding
from services.shielding import end, settled, shielded


async def test_work_continues_after_its_caller_was_cancelled_and_is_awaited_at_the_end() -> None:
    go_on, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        done.set()

    caller = asyncio.create_task(shielded(work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not done.is_set()
    go_on.set()
    await settled()
    assert done.is_set()


async def test_the_caller_gets_the_result_or_the_error_of_the_work() -> None:
    async def work(error: Exception | None) -> str:
        if error:
            raise error
        return "done"

    assert await shielded(work(None)) == "done"
    with pytest.raises(ValueError, match="no"):
        await shielded(work(ValueError("no")))


async def test_a_task_that_swallows_a_cancellation_is_cancelled_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shielding, "_CANCEL_AGAIN", 0.01)
    swallowed = 0

    async def work() -> None:
        nonlocal swallowed
        while swallowed < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
        raise ValueError("told to no one")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await end(task)
    assert task.done()
    assert swallowed == 3
