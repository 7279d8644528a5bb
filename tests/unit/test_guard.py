"""A task that ends is told of, whatever its error does when it is shown."""

import asyncio
import logging

import pytest

from worker.guard import Guard, WorkerBroken
from worker.job_run import _error_of


class Unreadable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


async def fails() -> None:
    raise Unreadable


async def test_the_end_of_a_task_with_an_error_that_cannot_be_shown_is_logged_and_ends_the_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = Guard(60.0)
    # As `start` does, without the thread that watches the event loop.
    guard._broken = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(fails(), name="one")
    guard.look_after([task])
    with caplog.at_level(logging.CRITICAL):
        async with asyncio.timeout(5):
            with pytest.raises(WorkerBroken):
                await guard.broken()
    assert "the task 'one' failed: <Unreadable, whose text cannot be shown: ValueError>" in caplog.text


async def test_the_error_of_a_job_that_cannot_be_shown_can_be_stored() -> None:
    task = asyncio.create_task(fails())
    await asyncio.wait({task})
    assert _error_of(task) == "<Unreadable, whose text cannot be shown: ValueError>"
