"""Handlers that break the rules: each ends as a retry that says what happened, and its neighbours take effect."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from sqlalchemy import text

from services.connections import NotYours, driver_of
from services.database import Database, close, make_engine, make_session_factory
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Subscription
from services.settings import Settings
from services.sql import Statement
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import LATER, Tick, TickHandler, append, damage, drain, effects, rows

Misdeed = Callable[[UnitOfWork], Awaitable[None]]
WAITING = "SELECT aggregate, attempts FROM outbox ORDER BY position"


async def execute(uow: UnitOfWork, statement: str) -> None:
    await (await uow.session.connection()).execute(text(statement))


async def raises(uow: UnitOfWork) -> None:
    raise ValueError("no such luck")


async def violates_a_constraint(uow: UnitOfWork) -> None:
    await execute(uow, "INSERT INTO outbox_types (type, max_batches) VALUES ('x', 0)")


async def violates_a_deferred_constraint(uow: UnitOfWork) -> None:
    await execute(uow, "INSERT INTO effects (name, number) VALUES ('twice', 0), ('twice', 0)")


async def lets_out_a_cancellation(uow: UnitOfWork) -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    task.cancel()
    await task


class NoException(BaseException):
    """What `except Exception` does not catch."""


async def raises_no_exception(uow: UnitOfWork) -> None:
    raise NoException("for no one to catch")


async def exits(uow: UnitOfWork) -> None:
    sys.exit("no reason")


class Unreadable(Exception):
    """An error that cannot be shown."""

    def __str__(self) -> str:
        raise NoException

    __repr__ = __str__


async def raises_what_cannot_be_shown(uow: UnitOfWork) -> None:
    raise Unreadable


async def raises_what_cannot_be_encoded(uow: UnitOfWork) -> None:
    raise ValueError("half a pair \ud800 and nul \x00")


async def waits_for_ever(uow: UnitOfWork) -> None:
    await asyncio.Event().wait()


async def sleeps_in_sql(uow: UnitOfWork) -> None:
    await execute(uow, "SELECT pg_sleep(60)")


async def sleeps_in_many_statements(uow: UnitOfWork) -> None:
    while True:
        await execute(uow, "SELECT pg_sleep(0.15)")


async def leaks_a_savepoint(uow: UnitOfWork) -> None:
    await execute(uow, "SAVEPOINT leaked")
    raise ValueError("with a savepoint open")


async def swallows_a_database_error(uow: UnitOfWork) -> None:
    try:
        await violates_a_constraint(uow)
    except Exception:  # noqa: BLE001
        return


MISDEEDS: dict[Misdeed, str] = {
    raises: "ValueError: no such luck",
    violates_a_constraint: "ck_outbox_types_max_batches",
    violates_a_deferred_constraint: "effects_name_number_key",
    lets_out_a_cancellation: "HandlerBroken: the handler of 'test.tick' raised CancelledError()",
    exits: "HandlerBroken: the handler of 'test.tick' raised SystemExit('no reason')",
    raises_no_exception: "HandlerBroken: the handler of 'test.tick' raised NoException('for no one to catch')",
    raises_what_cannot_be_shown: "Unreadable: <exception str() failed>",
    raises_what_cannot_be_encoded: "ValueError: half a pair ? and nul ",
    waits_for_ever: "the handler of 'test.tick' did not finish within 0.5 s for 1 events",
    sleeps_in_sql: "",
    sleeps_in_many_statements: "the handler of 'test.tick' did not finish within 0.5 s for 1 events",
    leaks_a_savepoint: "ValueError: with a savepoint open",
    swallows_a_database_error: "current transaction is aborted",
}


@pytest.fixture
async def ticking(ticking: Database, settings_of_superuser: Settings) -> AsyncIterator[Database]:
    """A database in which ticks take effect, with connections like those of the poll loops."""
    engine = make_engine(settings_of_superuser, "polling", keep_cancelled=True)
    sessions = make_session_factory(engine)
    yield Database(engine, sessions)
    await close(engine)


class Misbehaving(TickHandler):
    """Works as it should, then misbehaves if `bad` is in the batch."""

    def __init__(self, misdeed: Misdeed) -> None:
        super().__init__()
        self._misdeed = misdeed

    async def __call__(self, uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await super().__call__(uow, events)
        if any(claimed.event.name == "bad" for claimed in events):
            await self._misdeed(uow)


def engine(database: Database, handler: Any, *, plain: bool = False) -> Processor[UnitOfWork]:
    return Processor(
        lambda: UnitOfWork(database.write),
        [Subscription(Tick, handler, plain_sql=plain)],
        retry=LATER,
        batch_size=100,
        time_limit=0.5,
    )


@pytest.mark.parametrize("plain", [False, True], ids=["orm", "plain"])
@pytest.mark.parametrize("misdeed", MISDEEDS)
async def test_a_broken_handler_is_found_put_off_and_reported_and_its_neighbours_take_effect(
    ticking: Database, misdeed: Misdeed, plain: bool
) -> None:
    await append(ticking, *(Tick(name=name) for name in ("a", "b", "bad", "c")))

    async with asyncio.timeout(30):
        outcomes = await drain(engine(ticking, Misbehaving(misdeed), plain=plain))

    assert sum(outcome.processed for outcome in outcomes) == 3
    assert sum(outcome.retried for outcome in outcomes) == 1
    assert sorted(await effects(ticking)) == [("a", 0), ("b", 0), ("c", 0)]
    assert await rows(ticking, WAITING) == [("tick/bad", 1)]
    (error,) = await rows(ticking, "SELECT last_error FROM outbox")
    assert MISDEEDS[misdeed] in error


async def test_one_that_only_lets_cancellations_out_is_a_dead_letter_after_its_last_attempt(ticking: Database) -> None:
    await append(ticking, Tick(name="bad"), Tick(name="a"))
    handler = Misbehaving(lets_out_a_cancellation)
    last = Processor(
        lambda: UnitOfWork(ticking.write),
        [Subscription(Tick, handler, retry=RetryPolicy(1, 1, 1))],
        retry=LATER,
        batch_size=100,
    )
    await drain(last)
    assert await rows(ticking, "SELECT aggregate, attempts FROM dead_letters") == [("tick/bad", 1)]
    assert await effects(ticking) == [("a", 0)]


@pytest.mark.parametrize("plain", [False, True], ids=["orm", "plain"])
async def test_a_task_that_is_cancelled_while_its_handler_works_ends_and_no_attempt_is_counted(
    ticking: Database, plain: bool
) -> None:
    await append(ticking, Tick(name="bad"))
    begun = asyncio.Event()

    async def waits(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(engine(ticking, waits, plain=plain).run_once())
    async with asyncio.timeout(10):
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await rows(ticking, WAITING) == [("tick/bad", 0)]


async def test_a_verdict_that_is_no_exception_is_a_failure_that_says_so(ticking: Database) -> None:
    async def refuses(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> Any:
        return ["no"]

    await append(ticking, Tick(name="bad"))
    await drain(engine(ticking, refuses))
    assert await rows(ticking, WAITING) == [("tick/bad", 1)]
    (error,) = await rows(ticking, "SELECT last_error FROM outbox")
    assert "HandlerBroken: the handler of 'test.tick' returned a str as a verdict" in error


class Upgraded(Tick):
    """Its old payloads cannot be read, which its author did not expect."""

    type: ClassVar[str] = Tick.type
    version: ClassVar[int] = 2

    @classmethod
    def upgraded(cls, payload: dict[str, Any], version: int) -> dict[str, Any]:
        assert version == 1
        return {"name": payload["called"]}


async def test_an_upgrade_that_raises_costs_its_event_an_attempt_and_no_other_event(ticking: Database) -> None:
    await append(ticking, Tick(name="bad"), Tick(name="a"))
    await damage(ticking, "UPDATE events SET version = 2 WHERE aggregate = 'tick/a'")
    upgrading = Processor(
        lambda: UnitOfWork(ticking.write), [Subscription(Upgraded, TickHandler())], retry=LATER, batch_size=100
    )
    await drain(upgrading)
    assert await effects(ticking) == [("a", 0)]
    assert await rows(ticking, WAITING) == [("tick/bad", 1)]


async def commits(uow: UnitOfWork) -> None:
    await execute(uow, "COMMIT")


async def commits_at_the_driver(uow: UnitOfWork) -> None:
    await (await driver_of(await uow.session.connection())).execute("/* now */ commit")


async def commits_in_one_of_several_statements(uow: UnitOfWork) -> None:
    await (await driver_of(await uow.session.connection())).execute("SELECT 1; COMMIT; BEGIN")


async def commits_by_fetching(uow: UnitOfWork) -> None:
    await (await driver_of(await uow.session.connection())).fetch("END")


async def prepares_the_transaction(uow: UnitOfWork) -> None:
    await execute(uow, "-- for later\nPREPARE TRANSACTION 'mine'")


async def commits_the_unit_of_work(uow: UnitOfWork) -> None:
    await uow.commit()


async def commits_the_session(uow: UnitOfWork) -> None:
    await uow.session.commit()


async def commits_the_session_beneath(uow: UnitOfWork) -> None:
    await uow.session.run_sync(lambda session: session.commit())


async def rolls_back(uow: UnitOfWork) -> None:
    await execute(uow, "ROLLBACK")


async def rolls_back_the_unit_of_work(uow: UnitOfWork) -> None:
    await uow.rollback()


async def rolls_back_the_session(uow: UnitOfWork) -> None:
    await uow.session.rollback()


async def closes_the_session(uow: UnitOfWork) -> None:
    await uow.session.close()


async def leaves_the_unit_of_work(uow: UnitOfWork) -> None:
    await uow.__aexit__(None, None, None)


ENDS_THE_TRANSACTION: tuple[Misdeed, ...] = (
    commits,
    commits_at_the_driver,
    commits_in_one_of_several_statements,
    commits_by_fetching,
    prepares_the_transaction,
    commits_the_unit_of_work,
    commits_the_session,
    commits_the_session_beneath,
    rolls_back,
    rolls_back_the_unit_of_work,
    rolls_back_the_session,
    closes_the_session,
    leaves_the_unit_of_work,
)


@pytest.mark.parametrize("plain", [False, True], ids=["orm", "plain"])
@pytest.mark.parametrize("misdeed", ENDS_THE_TRANSACTION)
async def test_a_handler_cannot_end_its_transaction_and_an_attempt_to_do_so_fails_its_event_only(
    ticking: Database, misdeed: Misdeed, plain: bool
) -> None:
    await append(ticking, *(Tick(name=name) for name in ("a", "bad", "b")))

    outcomes = await drain(engine(ticking, Misbehaving(misdeed), plain=plain))

    assert [outcome.retried for outcome in outcomes if outcome.retried] == [1]
    assert sorted(await effects(ticking)) == [("a", 0), ("b", 0)]
    assert await rows(ticking, WAITING) == [("tick/bad", 1)]
    (error,) = await rows(ticking, "SELECT last_error FROM outbox")
    assert "a handler cannot end its transaction" in error


@pytest.mark.parametrize("plain", [False, True], ids=["orm", "plain"])
async def test_an_event_whose_handler_commits_behind_the_session_is_counted_and_nothing_takes_effect(
    ticking: Database, plain: bool
) -> None:
    async def commits_the_connection(uow: UnitOfWork) -> None:
        await (await uow.session.connection()).commit()

    await append(ticking, *(Tick(name=name) for name in ("a", "bad", "b")))
    broken = engine(ticking, Misbehaving(commits_the_connection), plain=plain)

    for _ in range(30):
        with suppress(Exception):
            await broken.run_once()

    assert sorted(await effects(ticking)) == [("a", 0), ("b", 0)]
    assert await rows(ticking, WAITING) == [("tick/bad", 1)]


async def test_quoted_text_is_not_taken_for_the_end_of_the_transaction(ticking: Database) -> None:
    ticks = TickHandler()

    async def quotes(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await ticks(uow, events)
        await uow.outbox.sql.run(Statement("DO $$ BEGIN PERFORM 1; END; $$"))
        await uow.outbox.sql.run(Statement("DO $body$ BEGIN PERFORM '; COMMIT'; END $body$; SELECT 'it''s; END'"))

    await append(ticking, Tick(name="a"))
    await drain(engine(ticking, quotes))
    assert await effects(ticking) == [("a", 0)]


async def test_after_the_handler_the_owner_can_end_the_transaction_again(ticking: Database) -> None:
    async with UnitOfWork(ticking.write) as uow:
        await uow.session.connection()
        with pytest.raises(NotYours):
            async with uow.lent():
                await uow.commit()
        await execute(uow, "INSERT INTO effects (name, number) VALUES ('mine', 0)")
        await uow.commit()
    assert await effects(ticking) == [("mine", 0)]


async def test_a_handler_that_swallows_a_database_error_and_reports_that_all_failed_has_not_ended_the_transaction(
    ticking: Database,
) -> None:
    async def refuses_all(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> list[Exception | None]:
        await swallows_a_database_error(uow)
        return [ValueError("no") for _ in events]

    await append(ticking, Tick(name="bad"))

    outcomes = await drain(engine(ticking, refuses_all))

    assert [outcome.retried for outcome in outcomes] == [1]
    assert await rows(ticking, WAITING) == [("tick/bad", 1)]
    assert await rows(ticking, "SELECT count(*) FROM dead_letters") == [0]
