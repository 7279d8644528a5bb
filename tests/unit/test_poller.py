"""How long the poll loops' listener waits between two looks at the outbox."""

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from services.outbox.doorbell import DoorbellListener
from services.outbox.engine.schemas import Outcome
from services.outbox.engine.service import Processor
from services.unit_of_work import UnitOfWork
from worker.poller import Poller

INTERVAL = 1.0
Look = tuple[bool, float | None]


class Outbox:
    """Stands in for the processor: what its looks find is given; each claim processes one event, or none."""

    def __init__(self, looks: Sequence[Look | Exception], processed: int) -> None:
        self._looks = list(looks)
        self._processed = processed

    async def look(self) -> Look:
        found = self._looks.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async def run_once(self) -> Outcome:
        return Outcome(processed=self._processed)

    async def park_unknown(self) -> int:
        return 0


class Ear:
    """Stands in for the doorbell: it rings at given times, and records how long it is listened to."""

    def __init__(self, rings: Sequence[bool]) -> None:
        self._rings = list(rings)
        self.waits: list[float] = []
        self.over = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        if not self._rings:
            self.over.set()
            await asyncio.Event().wait()
        # Time enough for what was called meanwhile.
        for _ in range(10):
            await asyncio.sleep(0)
        return self._rings.pop(0)


async def waits(looks: Sequence[Look | Exception], *, rings: Sequence[bool] = (), processed: int = 1) -> list[float]:
    ear = Ear(rings or [False] * len(looks))
    outbox = cast("Processor[UnitOfWork]", Outbox(looks, processed))
    poller = Poller([outbox], cast("DoorbellListener", ear), INTERVAL)
    poller.start()
    async with asyncio.timeout(10):
        await ear.over.wait()
    await poller.stop(1.0)
    return ear.waits


FOUND: Look = (True, None)
NOTHING: Look = (False, None)


async def test_without_events_it_looks_once_per_interval() -> None:
    assert await waits([NOTHING] * 4) == [1.0] * 5


async def test_if_events_come_without_a_ring_it_looks_sooner_each_time_and_then_as_before() -> None:
    assert await waits([FOUND] * 6 + [NOTHING]) == [1.0, 0.5, 0.25, 0.125, 0.1, 0.1, 0.1, 1.0]


async def test_events_that_are_not_processed_do_not_hurry_it() -> None:
    """They are another worker's, or of a type without a free slot."""
    assert await waits([FOUND] * 4, processed=0) == [1.0] * 5


async def test_a_ring_says_that_the_bell_is_there() -> None:
    assert await waits([FOUND, FOUND], rings=[False, False, True]) == [1.0, 0.5, 0.25, 1.0]


async def test_a_database_that_is_away_is_not_asked_more_often() -> None:
    assert await waits([FOUND, OSError("away"), OSError("away")]) == [1.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("due_in", [0.3, 7.0])
async def test_what_is_due_sooner_is_looked_for_when_it_is_due(due_in: float) -> None:
    assert await waits([(False, due_in)]) == [1.0, min(due_in, INTERVAL)]


class Away(Outbox):
    """A processor whose database is unavailable."""

    def __init__(self, failures: int) -> None:
        super().__init__([NOTHING], processed=0)
        self._left = failures
        self.over = asyncio.Event()

    async def run_once(self) -> Outcome:
        self._left -= 1
        if self._left == 0:
            self.over.set()
        raise ConnectionRefusedError("attempt", self._left)


async def test_a_database_that_is_away_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.poller._MAX_BACKOFF", 0.001)
    outbox = Away(failures=20)
    poller = Poller([cast("Processor[UnitOfWork]", outbox)], cast("DoorbellListener", Ear([])), INTERVAL)
    poller.start()
    async with asyncio.timeout(10):
        await outbox.over.wait()
    await poller.stop(1.0)
    assert poller.progress.rolled_back >= 19
    report = poller.progress.failures.report()
    assert report is not None
    assert (report["part"], report["times"]) == ("every batch of outbox-0", poller.progress.rolled_back)
    assert "ConnectionRefusedError" in report["error"]
    (line,) = [message for message in caplog.messages if "rolled back" in message]
    assert "ConnectionRefusedError" in line


class Stray(Outbox):
    """Its first claim lets a cancellation out that is not the loop's."""

    def __init__(self) -> None:
        super().__init__([NOTHING] * 3, 1)
        self.failed = False
        self.again = asyncio.Event()

    async def run_once(self) -> Outcome:
        if not self.failed:
            self.failed = True
            raise asyncio.CancelledError
        self.again.set()
        return await super().run_once()


async def test_a_cancellation_of_something_else_does_not_end_a_loop() -> None:
    outbox = Stray()
    poller = Poller([cast("Processor[UnitOfWork]", outbox)], cast("DoorbellListener", Ear([True] * 3)), INTERVAL)
    poller.start()
    async with asyncio.timeout(10):
        await outbox.again.wait()
    assert not any(task.done() for task in poller.tasks)
    assert poller.progress.rolled_back == 1
    assert poller.progress.failures.report() is None, "the next one succeeded"
    await poller.stop(1.0)


class Blocked(Outbox):
    """Its events are blocked; now and then one is processed."""

    def __init__(self, processed: Sequence[int]) -> None:
        super().__init__([], 0)
        self._left = list(processed)
        self.done = asyncio.Event()

    async def run_once(self) -> Outcome:
        if not self._left:
            self.done.set()
            await asyncio.Event().wait()
        return Outcome(processed=self._left.pop(0), blocked=1)


async def test_blocked_events_are_claimed_less_and_less_often_until_one_is_processed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []

    async def note(self: Poller, seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(Poller, "_pause", note)
    outbox = Blocked([1, *[0] * 9, 1, 0])
    poller = Poller([cast("Processor[UnitOfWork]", outbox)], cast("DoorbellListener", Ear([])), INTERVAL)
    poller.start()
    async with asyncio.timeout(10):
        await outbox.done.wait()
    await poller.stop(0.0)
    assert pauses == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0, 0.01, 0.02]
