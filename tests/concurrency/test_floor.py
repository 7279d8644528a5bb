"""Claims skip dead rows, whatever keeps them, but never a row that may still appear."""

from collections.abc import Sequence
from time import monotonic

import pytest
from sqlalchemy import text

from services.database import Database
from services.outbox.engine import repository, service, window
from services.outbox.engine.repository import OutboxRepository
from services.outbox.engine.schemas import ClaimedRow, Horizon, Look, Span
from services.outbox.engine.service import Processor
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import Tick, append, drain, effects, processor, rows


@pytest.fixture(params=["few dead rows", "many"])
def many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether any number of dead rows above the floor counts as many."""
    many = bool(request.param == "many")
    if many:
        monkeypatch.setattr(window, "_MANY", 0)
    return many


@pytest.mark.usefixtures("many")
async def test_an_event_whose_writer_took_its_position_early_and_committed_late_is_not_passed_over(
    ticking: Database,
) -> None:
    engine = processor(ticking)
    async with UnitOfWork(ticking.write) as late, UnitOfWork(ticking.read) as reader:
        late.record(Tick(name="late"))
        await late.check()
        # Another session also holds a snapshot.
        connection = await reader.session.connection()
        await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        await connection.execute(text("SELECT count(*) FROM outbox"))
        for number in range(8):
            await append(ticking, Tick(name="early", number=number))
            await drain(engine)
        assert [name for name, _ in await effects(ticking)] == ["early"] * 8
        await late.commit()
        await drain(engine)
        assert (await effects(ticking))[-1] == ("late", 0)
        for number in range(8, 12):
            await append(ticking, Tick(name="early", number=number))
            await drain(engine)
    assert len(await effects(ticking)) == 13


@pytest.mark.usefixtures("many")
async def test_the_floor_rises_past_what_is_done_and_stays_below_what_is_to_come(ticking: Database) -> None:
    engine = processor(ticking)
    floors: list[int] = []
    for number in range(6):
        await append(ticking, Tick(name="a", number=number))
        await drain(engine)
        floors.append(engine._floor.position)
    assert floors == sorted(floors)
    assert floors[-1] > 1
    async with UnitOfWork(ticking.write) as late:
        late.record(Tick(name="late"))
        await late.check()
        (last,) = await rows(ticking, "SELECT last_value FROM outbox_position_seq")
        for number in range(6, 16):
            await append(ticking, Tick(name="a", number=number))
            await drain(engine)
        assert engine._floor.position <= last


async def test_a_transaction_that_stays_open_and_writes_no_event_holds_the_floor_up_only_over_few_rows(
    ticking: Database, many: bool
) -> None:
    engine = processor(ticking)
    async with UnitOfWork(ticking.write) as migration:
        connection = await migration.session.connection()
        await connection.execute(text("SELECT pg_current_xact_id()"))
        for number in range(10):
            await append(ticking, Tick(name="a", number=number))
            await drain(engine)
        (last,) = await rows(ticking, "SELECT last_value FROM outbox_position_seq")
        assert (engine._floor.position > last - 3) == many


async def test_a_taker_that_ends_right_after_the_snapshot_of_a_claim_is_not_passed_over(
    ticking: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "_MANY", 0)
    engine = processor(ticking)
    claim = OutboxRepository.claim

    async def go_on(*numbers: int) -> None:
        for number in numbers:
            await append(ticking, Tick(name="early", number=number))
            await drain(engine)

    async with UnitOfWork(ticking.write) as first, UnitOfWork(ticking.write) as late:
        first.record(Tick(name="first"))
        await first.flush()
        await go_on(0, 1, 2)
        late.record(Tick(name="late"))
        await late.flush()
        await go_on(3)
        await first.commit()
        # Now the floor waits for every position taken so far, including that of the late one.
        await go_on(4)

        async def claim_and_commit(
            self: OutboxRepository, spans: Sequence[Span], floor: int
        ) -> tuple[Horizon, list[ClaimedRow]]:
            claimed = await claim(self, spans, floor)
            await late.commit()
            return claimed

        with monkeypatch.context() as patch:
            patch.setattr(OutboxRepository, "claim", claim_and_commit)
            await engine.run_once()
        await go_on(5, 6, 7)
    assert ("late", 0) in await effects(ticking)


async def test_a_taker_is_recognized_until_it_ends(ticking: Database) -> None:
    async def ended_below() -> int:
        async with UnitOfWork(ticking.write) as asking:
            return await asking.outbox.oldest_taker()

    async with UnitOfWork(ticking.write) as other, UnitOfWork(ticking.write) as taker:
        idle, own = [await _id(uow) for uow in (other, taker)]
        assert await ended_below() > own > idle
        taker.record(Tick(name="a"))
        await taker.flush()
        assert await ended_below() == own
        await taker.commit()
        assert await ended_below() > own


async def test_a_taker_that_has_undone_its_event_counts_to_the_end_of_its_transaction(ticking: Database) -> None:
    async with UnitOfWork(ticking.write) as taker, UnitOfWork(ticking.write) as asking:
        own = await _id(taker)
        with pytest.raises(ZeroDivisionError):
            await _record_in_vain(taker)
        assert await asking.outbox.oldest_taker() == own


class Later:
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return monotonic() + self.ahead


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    clock = Later()
    monkeypatch.setattr(window, "monotonic", clock)
    monkeypatch.setattr(service, "monotonic", clock)
    return clock


async def set_back(database: Database, number: int) -> Processor[UnitOfWork]:
    """A processor whose floor is beyond the first of the waiting events, whose positions started again from 1."""
    engine = processor(database)
    for done in range(20):
        await append(database, Tick(name="before", number=done))
        await drain(engine)
    assert engine._floor.position > 15
    await rows(database, "SELECT setval('outbox_position_seq', 1, false)")
    await append(database, *(Tick(name=f"after {new}") for new in range(number)))
    return engine


async def waiting(database: Database) -> int:
    (found,) = await rows(database, "SELECT count(*) FROM outbox")
    return int(found)


async def test_after_positions_were_set_back_a_claim_processes_all_within_a_minute(
    ticking: Database, later: Later
) -> None:
    engine = await set_back(ticking, 40)
    await drain(engine)
    assert await waiting(ticking) > 0, "it still skips those below its floor"
    later.ahead = 60.0
    await drain(engine)
    assert await waiting(ticking) == 0
    # From now on, with a floor that is right.
    await append(ticking, Tick(name="last"))
    await drain(engine)
    assert await waiting(ticking) == 0


async def test_after_positions_were_set_back_an_idle_worker_finds_them_within_a_minute(
    ticking: Database, later: Later
) -> None:
    engine = await set_back(ticking, 10)
    assert await engine.look() == (False, None)
    later.ahead = 60.0
    assert (await engine.look())[0]
    await drain(engine)
    assert await waiting(ticking) == 0


async def test_after_positions_were_set_back_a_claim_that_sees_it_looks_from_the_beginning_at_once(
    ticking: Database, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await set_back(ticking, 10)
    await drain(engine)
    assert await waiting(ticking) == 0
    assert "the outbox's positions or transaction ids were set back" in caplog.text


@pytest.mark.parametrize("idle", [False, True])
async def test_after_positions_were_set_back_a_new_connection_looks_from_the_beginning(
    ticking: Database, *, idle: bool
) -> None:
    engine = await set_back(ticking, 40)
    await rows(ticking, "DELETE FROM outbox WHERE position >= 15")
    await ticking.engine.dispose()
    if idle:
        assert (await engine.look())[0]
    await drain(engine)
    assert await waiting(ticking) == 0


async def test_a_look_from_the_beginning_that_finds_nothing_is_not_repeated_before_a_minute_is_over(
    ticking: Database, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await set_back(ticking, 0)
    firsts: list[int] = []
    look = OutboxRepository.look

    async def note(self: OutboxRepository, spans: Sequence[Span]) -> Look:
        firsts.extend(span.first for span in spans)
        return await look(self, spans)

    monkeypatch.setattr(OutboxRepository, "look", note)
    for ahead in (30.0, 61.0, 62.0, 120.0, 122.0):
        later.ahead = ahead
        await engine.look()
    floor = engine._floor.position
    assert floor > 0
    assert firsts == [floor, 0, floor, floor, 0]


@pytest.mark.parametrize(
    ("own", "taker", "whole"),
    [
        (700, 650, 650),
        (700, 710, 710),
        (2**32 + 5, 2**32 - 3, 2**32 - 3),
        (2**32 - 5, 3, 2**32 + 3),
        (5 * 2**32 + 2**31, 2**31 - 1, 5 * 2**32 + 2**31 - 1),
    ],
)
def test_the_lower_half_of_a_running_transactions_id_determines_the_whole(own: int, taker: int, whole: int) -> None:
    assert repository._whole_id(taker % 2**32, near=own) == whole


async def _record_in_vain(uow: UnitOfWork) -> None:
    async with uow.savepoint():
        uow.record(Tick(name="a"))
        await uow.flush()
        raise ZeroDivisionError


async def _id(uow: UnitOfWork) -> int:
    connection = await uow.session.connection()
    found = await connection.execute(text("SELECT CAST(CAST(pg_current_xact_id() AS text) AS bigint)"))
    return int(found.scalar_one())
