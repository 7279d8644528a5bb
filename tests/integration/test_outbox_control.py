"""What operators do to dead letters, deferred events and event types, and what they see."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy import text

from services.database import Database
from services.errors import Conflict, InvalidInput, NotFound
from services.fields import new_id, now
from services.outbox.control import service as control
from services.outbox.control import why
from services.outbox.control.schemas import By, Selection
from services.outbox.control.why import State
from services.outbox.events import Claimed
from services.outbox.inspection import service as inspection
from services.outbox.inspection.schemas import GroupsWanted
from services.outbox.policy import RetryPolicy
from services.query import PageQuery
from services.sql import Sql, Statement
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import LATER, Tick, TickHandler, append, drain, effects, make_effects, processor, rows

AT_ONCE_DEAD = RetryPolicy(max_attempts=1, base=0.001, cap=0.001)
OPS = By("ops", "known bug")
BEATS = "INSERT INTO workers VALUES (gen_random_uuid(), 'h', 1, now(), now(), now(), '{\"types\": [\"test.tick\"]}')"


@pytest.fixture
async def database(database: Database) -> Database:
    await make_effects(database)
    return database


async def refuse(_: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
    raise ValueError(f"{events[0].event.name!r} is poison")


async def bury(database: Database, *names: str) -> list[int]:
    """Make dead letters, one for each aggregate; return their positions."""
    await append(database, *(Tick(name=name) for name in names))
    await drain(processor(database, refuse, retry=AT_ONCE_DEAD))
    return await rows(database, "SELECT position FROM dead_letters ORDER BY position")


async def actions(database: Database) -> list[tuple[str, str, str, str | None]]:
    return await rows(database, "SELECT action, actor, reason, aggregate FROM outbox_actions ORDER BY id")


async def test_a_discarded_dead_letter_wakes_what_waits_and_is_kept_in_the_audit(database: Database) -> None:
    (position,) = await bury(database, "a")
    await append(database, Tick(name="a", number=1))
    await drain(processor(database))
    assert await effects(database) == []
    async with UnitOfWork(database.write) as uow:
        done = await control.discard(uow, Selection(position=position), OPS)
        await uow.commit()
    assert (done.matching, done.done) == (1, 1)
    await drain(processor(database))
    assert await effects(database) == [("a", 1)]
    assert await actions(database) == [("discard", "ops", "known bug", "tick/a")]
    (kept,) = await rows(database, "SELECT detail ->> 'message' FROM outbox_actions")
    assert kept == "ValueError: 'a' is poison"


async def test_the_audit_refers_to_an_error_of_each_kind_instead_of_copying_every_one(database: Database) -> None:
    positions = await bury(database, *(f"n{number}" for number in range(60)))
    await rows(database, "UPDATE dead_letters SET error = repeat('a frame' || chr(10), 1000) || error")
    # Stored before there were fingerprints and histories.
    await rows(
        database, "UPDATE dead_letters SET fingerprint = '', failures = '[]' WHERE position = :one", one=positions[0]
    )
    async with UnitOfWork(database.write) as uow:
        await control.replay(uow, Selection(position=positions[1]), OPS)
        await control.discard(uow, Selection(type="test.tick"), OPS)
        await uow.commit()
    assert await rows(database, "SELECT count(*) FROM outbox_errors") == [2]
    assert await rows(database, "SELECT action, count(*) FROM outbox_actions GROUP BY action ORDER BY 1") == [
        ("discard", 59),
        ("replay", 1),
    ]
    assert await rows(database, "SELECT max(pg_column_size(detail)) < 600 FROM outbox_actions") == [True]
    told = (
        "SELECT detail ->> 'message', error LIKE '%a frame%ValueError%', detail -> 'failures' -> 0 ? 'at'"
        " FROM outbox_actions LEFT JOIN outbox_errors ON fingerprint = detail ->> 'fingerprint'"
        " ORDER BY action DESC, CAST(detail ->> 'position' AS bigint)"
    )
    assert await rows(database, told) == [
        ("ValueError: 'n1' is poison", True, None),
        ("ValueError: 'n0' is poison", True, None),
        *((f"ValueError: 'n{number}' is poison", True, True) for number in range(2, 60)),
    ]


async def test_two_operators_who_discard_errors_of_the_same_kinds_at_once_do_not_deadlock(database: Database) -> None:
    await bury(database, *(f"n{number}" for number in range(40)))
    await rows(database, "UPDATE dead_letters SET fingerprint = 'kind ' || (position * 7) % 10")

    async def discard(half: int) -> None:
        async with UnitOfWork(database.write) as uow:
            for position in await rows(
                database, "SELECT position FROM dead_letters WHERE position % 2 = :half ORDER BY position", half=half
            ):
                await control.discard(uow, Selection(position=position), OPS)
                await asyncio.sleep(0)
                await uow.commit()

    await asyncio.gather(discard(0), discard(1))
    assert await rows(database, "SELECT count(*) FROM outbox_errors") == [10]


async def test_discarding_needs_a_reason_and_a_selection(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        with pytest.raises(InvalidInput, match="reason"):
            await control.discard(uow, Selection(position=1), By("ops", " "))
        with pytest.raises(InvalidInput, match="select dead letters by"):
            await control.replay(uow, Selection(), OPS)


async def test_a_dry_run_lists_the_dead_letters_and_writes_nothing(database: Database) -> None:
    positions = await bury(database, "a", "b", "c")
    async with UnitOfWork(database.write) as uow:
        done = await control.discard(uow, Selection(type="test.tick"), OPS, limit=2, dry_run=True)
        await uow.commit()
    assert (done.matching, [letter.position for letter in done.letters], done.more) == (3, positions[:2], True)
    assert await rows(database, "SELECT position FROM dead_letters ORDER BY position") == positions
    assert await actions(database) == []


async def test_letters_are_counted_up_to_a_bound_before_an_act(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bury(database, "a", "b", "c")
    for bound, counted in ((2, (2, True)), (3, (3, False))):
        monkeypatch.setattr("services.outbox.control.repository.COUNTED", bound)
        async with UnitOfWork(database.write) as uow:
            done = await control.replay(uow, Selection(type="test.tick"), OPS, dry_run=True)
        assert (done.matching, done.matching_is_more) == counted


async def test_all_of_one_fingerprint_are_replayed_slice_by_slice(database: Database) -> None:
    await bury(database, "a", "b", "c")
    async with UnitOfWork(database.write) as uow:
        (group,) = (await inspection.groups(uow, GroupsWanted())).data
    assert (group.letters, group.aggregates, group.type) == (3, 3, "test.tick")
    assert group.message.startswith("ValueError: ")
    after, counts = 0, []
    while True:
        async with UnitOfWork(database.write) as uow:
            done = await control.replay(uow, Selection(fingerprint=group.fingerprint), OPS, after=after, limit=2)
            await uow.commit()
        counts.append(done.done)
        after = done.last
        if not done.more:
            break
    assert counts == [2, 1]
    assert await rows(database, "SELECT version FROM outbox") == [1, 1, 1]
    await drain(processor(database))
    assert sorted(await effects(database)) == [("a", 0), ("b", 0), ("c", 0)]
    assert [action for action, *_ in await actions(database)] == ["replay"] * 3


@pytest.mark.parametrize("first", [True, False], ids=["through SQLAlchemy", "through the driver"])
async def test_a_dead_letter_of_a_database_error_names_the_constraint(database: Database, first: bool) -> None:
    await rows(database, "CREATE TABLE parcels (id int CONSTRAINT positive CHECK (id > 0))")

    async def send(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        if first:
            connection = await uow.session.connection()
            await connection.execute(text("INSERT INTO parcels VALUES (:id)"), {"id": -events[0].event.number})
        else:
            await Sql.of(uow.session).run(Statement("INSERT INTO parcels VALUES (:id)"), id=-events[0].event.number)

    await append(database, Tick(name="a", number=1), Tick(name="b", number=2))
    await drain(processor(database, send, retry=AT_ONCE_DEAD))
    async with UnitOfWork(database.write) as uow:
        (group,) = (await inspection.groups(uow, GroupsWanted())).data
        (found,) = await why.of_aggregate(uow, "tick/a")
    assert group.letters == 2
    assert group.message == found.error
    assert group.message == (
        'CheckViolationError: new row for relation "parcels" violates check constraint "positive"'
        " (SQLSTATE 23514, constraint positive)"
    )


async def test_a_discard_waits_for_a_worker_that_parks_behind_the_dead_letter_and_wakes_its_event(
    database: Database,
) -> None:
    (position,) = await bury(database, "a")
    await append(database, Tick(name="a", number=1))
    (later,) = await rows(database, "SELECT position FROM outbox")

    async def discard() -> None:
        async with UnitOfWork(database.write) as uow:
            await control.discard(uow, Selection(position=position), OPS)
            await uow.commit()

    async with asyncio.timeout(30), UnitOfWork(database.write) as worker:
        assert await worker.outbox.park([later]) == 1
        discarding = asyncio.create_task(discard())
        await asyncio.wait([discarding], timeout=0.3)
        assert not discarding.done()
        await worker.commit()
        await discarding
    await drain(processor(database))
    assert await effects(database) == [("a", 1)]


async def test_no_event_is_parked_behind_a_dead_letter_that_is_being_discarded(database: Database) -> None:
    (position,) = await bury(database, "a")
    await append(database, Tick(name="a", number=1))
    async with asyncio.timeout(30), UnitOfWork(database.write) as uow:
        await control.discard(uow, Selection(position=position), OPS)
        await drain(processor(database))
        await uow.commit()
    await drain(processor(database))
    assert await effects(database) == [("a", 1)]


async def test_replays_by_fingerprint_while_workers_run_keep_the_order(database: Database) -> None:
    names = [f"n{number}" for number in range(20)]
    await bury(database, *names)
    await append(database, *(Tick(name=name, number=number) for number in (1, 2) for name in names))
    finished = asyncio.Event()

    async def work() -> None:
        engine = processor(database, batch_size=7)
        while not finished.is_set():
            await drain(engine)
            await asyncio.sleep(0.002)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(work())
        more = True
        while more:
            async with UnitOfWork(database.write) as uow:
                (kind,) = (await inspection.groups(uow, GroupsWanted())).data
                more = (await control.replay(uow, Selection(fingerprint=kind.fingerprint), OPS, limit=3)).more
                await uow.commit()
            more = bool(await rows(database, "SELECT 1 FROM dead_letters LIMIT 1"))
        finished.set()
    await drain(processor(database))
    took_effect = await effects(database)
    for name in names:
        assert [number for other, number in took_effect if other == name] == [0, 1, 2], name


async def test_a_deferred_event_is_cancelled_once_and_never_processed(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        event_id = uow.record(Tick(name="a"), available_at=now() + timedelta(hours=1))
        await uow.commit()
    async with UnitOfWork(database.write) as uow:
        listed = await uow.control.deferred(PageQuery(sort="available_at", limit=10))
        assert [row.event_id for row in listed.data] == [event_id]
        assert (await why.of_event(uow, event_id)).state is State.deferred
        assert await control.cancel(uow, event_id, OPS)
        await uow.commit()
        with pytest.raises(NotFound):
            await control.cancel_or_refuse(uow, event_id, OPS)
    assert await rows(database, "SELECT 1 FROM outbox") == []
    assert await actions(database) == [("cancel", "ops", "known bug", "tick/a")]


async def test_an_event_that_is_being_processed_or_not_deferred_is_not_cancelled(database: Database) -> None:
    async with UnitOfWork(database.write) as uow:
        deferred = uow.record(Tick(name="a"), available_at=now() + timedelta(hours=1))
        ready = uow.record(Tick(name="b"))
        await uow.commit()
    async with UnitOfWork(database.write) as worker, UnitOfWork(database.write) as uow:
        await (await worker.session.connection()).exec_driver_sql(
            "SELECT 1 FROM outbox WHERE aggregate = 'tick/a' FOR UPDATE"
        )
        for event_id in (deferred, ready):
            with pytest.raises(Conflict):
                await control.cancel_or_refuse(uow, event_id, OPS)


async def test_a_paused_type_is_left_alone_until_it_is_resumed(database: Database) -> None:
    await append(database, Tick(name="a"))
    engine = processor(database)
    async with UnitOfWork(database.write) as uow:
        await control.pause(uow, "test.tick", OPS)
        await uow.commit()
    await drain(engine)
    assert await effects(database) == []
    async with UnitOfWork(database.write) as uow:
        (found,) = await why.of_aggregate(uow, "tick/a")
        assert (found.state, found.because) == (State.paused, "test.tick is paused by ops")
        await control.pause(uow, "test.tick", OPS, paused=False)
        await uow.commit()
    await drain(engine)
    assert await effects(database) == [("a", 0)]


async def test_why_names_the_root_its_error_and_when_it_is_tried_again(database: Database) -> None:
    await append(database, *(Tick(name="a", number=number) for number in range(3)))
    await drain(processor(database, TickHandler(lambda one: one.event.number == 0), retry=LATER))
    async with UnitOfWork(database.write) as uow:
        first, second, third = await why.of_aggregate(uow, "tick/a")
    assert first.state is State.retry
    assert first.until is not None
    assert first.since is not None
    assert first.error is not None
    assert "poison" in first.error
    for later in (second, third):
        assert (later.state, later.blocker) == (State.behind, first)


async def test_why_names_the_dead_letter_and_the_transaction_that_holds_a_row(database: Database) -> None:
    (position,) = await bury(database, "a")
    await append(database, Tick(name="a", number=1), Tick(name="b"))
    await rows(database, BEATS)
    async with UnitOfWork(database.write) as uow:
        dead, behind = await why.of_aggregate(uow, "tick/a")
        assert (dead.state, dead.position) == (State.dead, position)
        assert behind.blocker == dead
        (ready,) = await why.of_aggregate(uow, "tick/b")
        assert ready.state is State.ready
        with pytest.raises(NotFound):
            await why.of_event(uow, new_id())
    async with UnitOfWork(database.write) as worker, UnitOfWork(database.write) as uow:
        await (await worker.session.connection()).exec_driver_sql(
            "SELECT 1 FROM outbox WHERE aggregate = 'tick/b' FOR UPDATE"
        )
        locked = await why.of_position(uow, ready.position)
    assert locked.state is State.locked
    assert "waybill-test" in locked.because


@pytest.mark.parametrize(
    "source",
    [
        "INSERT INTO outbox (event_id, aggregate, type) VALUES (gen_random_uuid(), 'a/1', 'far.away')",
        "INSERT INTO outbox (event_id, aggregate, type, waits, available_at)"
        " VALUES (gen_random_uuid(), 'a/1', 'far.away', 'behind', 'infinity')",
        "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error)"
        " VALUES (1, gen_random_uuid(), 'a/1', 'far.away', 1, '')",
        "INSERT INTO events (id, type, version, aggregate, payload)"
        " VALUES (gen_random_uuid(), 'far.away', 1, 'a/1', '{}')",
        "INSERT INTO outbox_types (type, paused) VALUES ('far.away', true)",
        BEATS.replace("test.tick", "far.away"),
    ],
    ids=["ready", "parked", "dead", "logged", "controlled", "handled"],
)
async def test_a_type_is_known_from_wherever_it_occurs(database: Database, source: str) -> None:
    async with UnitOfWork(database.write) as uow:
        for act in (control.pause(uow, "far.away", OPS), control.limit(uow, "far.away", 1, OPS)):
            with pytest.raises(NotFound, match=r"there is no event type 'far\.away'"):
                await act
        await (await uow.session.connection()).execute(text(source))
        await control.pause(uow, "far.away", OPS)
        await control.limit(uow, "far.away", 1, OPS)


async def test_an_id_without_a_kind_is_found_among_ready_waiting_and_dead_aggregates(database: Database) -> None:
    await bury(database, "dead")
    await append(database, Tick(name="retried"))
    await drain(processor(database, TickHandler(lambda _: True), retry=LATER))
    await append(database, Tick(name="ready"))
    async with UnitOfWork(database.write) as uow:
        for name, state in (("dead", State.dead), ("retried", State.retry), ("ready", State.no_worker)):
            (found,) = await why.of_any(uow, name)
            assert (found.aggregate, found.state) == (f"tick/{name}", state)
            assert await why.of_any(uow, str(found.event_id)) == [found]
            assert await why.of_any(uow, str(found.position)) == [found]
        with pytest.raises(NotFound, match="no waiting event matches 'other'"):
            await why.of_any(uow, "other")


async def test_why_shows_that_all_slots_are_taken(database: Database) -> None:
    await append(database, Tick(name="a"), Tick(name="b"))
    async with UnitOfWork(database.write) as uow:
        await control.limit(uow, "test.tick", 1, OPS)
        await uow.commit()
    seen: list[why.Why] = []

    async def look(_: UnitOfWork, __: object) -> None:
        async with UnitOfWork(database.write) as uow:
            seen.extend(await why.of_aggregate(uow, "tick/b"))

    await processor(database, look, batch_size=1).run_once()
    assert [one.state for one in seen] == [State.slots_full]
    assert seen[0].because == "1 batch of test.tick is running, and at most 1 may"


async def test_types_are_listed_with_their_backlog_their_workers_and_the_age_of_the_oldest_event(
    database: Database,
) -> None:
    await bury(database, "a")
    await append(database, Tick(name="a", number=1), Tick(name="b"), Tick(name="c"))
    await drain(processor(database, TickHandler(lambda one: one.event.name == "b"), retry=LATER, batch_size=1))
    await rows(database, BEATS)
    async with UnitOfWork(database.write) as uow:
        await control.limit(uow, "test.tick", 3, OPS)
        (one,) = await control.types(uow)
    assert (one.type, one.dead_letters, one.max_batches, one.workers) == ("test.tick", 1, 3, 1)
    assert one.ready + one.waiting >= 2
    assert not one.ready_is_more
