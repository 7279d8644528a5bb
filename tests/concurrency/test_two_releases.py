"""Workers of two releases on one database, and workers that know different types."""

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from services.database import Database
from services.fields import new_id
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed, Event
from services.outbox.subscription import Subscription
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import LATER, Tick, TickHandler, append, drain, effects, rows


class Coloured(Tick):
    """The same version as `Tick`, with one more field."""

    colour: str = "red"


class Numbered(Event):
    """The next version of `Tick`: its number has another name, and must be given."""

    type: ClassVar[str] = Tick.type
    version: ClassVar[int] = 2
    queued: ClassVar[bool] = True

    name: str
    place: int

    @property
    def aggregate(self) -> str:
        return f"tick/{self.name}"

    @classmethod
    def upgraded(cls, payload: dict[str, Any], version: int) -> dict[str, Any]:
        assert version == 1
        return {"name": payload["name"], "place": payload["number"]}


class Spark(Tick):
    """Of another type."""

    type: ClassVar[str] = "test.spark"


async def handle_numbered(uow: UnitOfWork, events: Sequence[Claimed[Numbered]]) -> None:
    await TickHandler()(uow, [as_tick(claimed) for claimed in events])


def as_tick(claimed: Claimed[Numbered]) -> Claimed[Tick]:
    tick = Tick(name=claimed.event.name, number=claimed.event.place)
    return Claimed(claimed.position, claimed.event_id, claimed.aggregate, claimed.attempts, tick, claimed.trace)


def worker(database: Database, event: type[Event], handler: Any = None, **options: Any) -> Processor[UnitOfWork]:
    return Processor(
        lambda: UnitOfWork(database.write),
        [Subscription(event, handler or TickHandler())],
        retry=LATER,
        batch_size=options.get("batch_size", 10),
    )


async def lives(database: Database, **versions: int) -> None:
    """A worker that knows these versions reports."""
    await rows(
        database,
        "INSERT INTO workers (id, host, pid, started_at, beat_at, progress_at, report) VALUES (:id, 'h', 1, now(),"
        " now(), now(), jsonb_build_object('versions', CAST(:versions AS jsonb)))",
        id=new_id(),
        versions=str(versions).replace("'", '"').replace("test_", "test."),
    )


async def record(database: Database, *events: Event) -> None:
    async with UnitOfWork(database.write) as uow:
        for event in events:
            uow.record(event)
        await uow.commit()


async def test_a_field_that_the_next_release_added_is_ignored_by_workers_of_this_one(ticking: Database) -> None:
    await append(ticking, Coloured(name="a", colour="blue"))
    await drain(worker(ticking, Tick))
    assert await effects(ticking) == [("a", 0)]


async def test_events_of_a_newer_version_are_left_to_workers_that_know_it(ticking: Database) -> None:
    old, new = worker(ticking, Tick), worker(ticking, Numbered, handle_numbered)
    await lives(ticking, test_tick=2)
    await record(ticking, *(Numbered(name=f"n{number}", place=0) for number in range(25)), Tick(name="a"))

    await drain(old)

    assert await effects(ticking) == [("a", 0)]
    assert await old.look() == (False, None)
    assert await old.park_unknown() == 0
    assert await rows(ticking, "SELECT count(*) FROM outbox WHERE available_at IS NULL") == [25]
    assert (await new.look())[0]
    await drain(new)
    assert len(await effects(ticking)) == 26
    assert await rows(ticking, "SELECT count(*) FROM dead_letters") == [0]


async def test_events_of_a_version_that_no_live_worker_knows_wait_and_are_due_at_once_for_one_that_does(
    ticking: Database,
) -> None:
    old = worker(ticking, Tick)
    await record(ticking, Numbered(name="a", place=0))
    assert await old.park_unknown() == 1
    assert await rows(ticking, "SELECT waits, last_error FROM outbox") == [
        ("unknown", "no worker has a handler for version 2 of 'test.tick'")
    ]
    await drain(old)
    assert await effects(ticking) == []
    await drain(worker(ticking, Numbered, handle_numbered))
    assert await effects(ticking) == [("a", 0)]


async def test_an_event_that_was_recorded_without_its_version_waits_for_a_worker_that_knows_it(
    ticking: Database,
) -> None:
    await record(ticking, Numbered(name="a", place=0))
    await rows(ticking, "UPDATE outbox SET version = NULL")
    await drain(worker(ticking, Tick))
    assert await rows(ticking, "SELECT waits, attempts FROM outbox") == [("unknown", 0)]
    await rows(ticking, "UPDATE outbox SET available_at = now()")
    await drain(worker(ticking, Numbered, handle_numbered))
    assert await effects(ticking) == [("a", 0)]


async def test_both_releases_side_by_side_process_each_event_once_and_in_order(ticking: Database) -> None:
    names, length = [f"n{number}" for number in range(8)], 12
    for number in range(length):
        kinds: list[Event] = [
            Numbered(name=name, place=number) if (number + place) % 3 == 0 else Tick(name=name, number=number)
            for place, name in enumerate(names)
        ]
        await record(ticking, *kinds)
    workers = [worker(ticking, Tick), worker(ticking, Numbered, handle_numbered), worker(ticking, Coloured)]

    async def run(one: Processor[UnitOfWork]) -> None:
        while await rows(ticking, "SELECT 1 FROM outbox LIMIT 1"):
            await drain(one)
            await asyncio.sleep(0.01)

    async with asyncio.timeout(60):
        await asyncio.gather(*(run(one) for one in workers))

    took_effect = await effects(ticking)
    assert len(took_effect) == len(names) * length
    for name in names:
        assert [number for other, number in took_effect if other == name] == list(range(length)), name
    assert await rows(ticking, "SELECT count(*) FROM dead_letters") == [0]


@pytest.mark.parametrize(("known", "parked"), [({"test_spark": 1}, 0), ({"test_other": 1}, 1)])
async def test_a_worker_leaves_events_of_a_type_that_another_live_worker_knows_where_they_are(
    ticking: Database, known: dict[str, int], parked: int
) -> None:
    await lives(ticking, **known)
    await append(ticking, Spark(name="a"))
    assert await worker(ticking, Tick).park_unknown() == parked


async def test_a_worker_asks_for_events_that_nobody_knows_only_if_something_is_ready(ticking: Database) -> None:
    idle = worker(ticking, Tick)
    assert await idle.look() == (False, None)
    await append(ticking, Spark(name="a"))
    assert await idle.park_unknown() == 0
    assert await idle.look() == (False, None)
    assert await idle.park_unknown() == 1


async def test_a_worker_that_has_not_reported_lately_is_not_live(ticking: Database) -> None:
    await lives(ticking, test_spark=1)
    await rows(ticking, "UPDATE workers SET beat_at = now() - interval '1 minute'")
    await append(ticking, Spark(name="a"))
    assert await worker(ticking, Tick).park_unknown() == 1
