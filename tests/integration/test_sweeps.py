"""A row that the database refuses, or that is locked, does not keep other due rows from ending."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.credits.holds.service import HOLDS
from services.database import Database
from services.orders.expiry.service import HELD, UNPAID
from services.sweeps import service
from services.sweeps.service import Sweep
from services.unit_of_work import OpenUnitOfWork, UnitOfWork
from services.users.models import User
from tests.api.later import assert_nothing_differs, let_the_time_run_out
from tests.concurrency.test_ledger_and_stock import assert_balanced, place
from tests.concurrency.test_resolving import balances, held
from tests.concurrency.ticks import rows
from tests.factories import make_product, make_user
from tests.logs import capture_logs
from worker.jobs.sweeping import run_sweeps

ALL: tuple[Sweep[Any], ...] = (UNPAID, HELD, HOLDS)
FAILURES = "SELECT sweep, subject, attempts FROM sweep_failures ORDER BY sweep, subject"
DUE_AGAIN = "UPDATE sweep_failures SET next_at = now() - interval '1 second'"
EXPIRED = "SELECT count(*) FROM transfers WHERE state = 'expired'"
LEFT_OUT = "rows left out of a sweep: the database refuses to end them"

# Something that was added by hand. The function refuses the rows whose ids are in the table `refused`.
REFUSE = """
    CREATE TABLE refused (id uuid, code text DEFAULT 'P0001');
    CREATE FUNCTION refuse_some() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE found text;
        BEGIN
            SELECT code INTO found FROM refused WHERE id = (to_jsonb(NEW) ->> TG_ARGV[0])::uuid;
            IF found IS NOT NULL THEN RAISE EXCEPTION 'not this one' USING ERRCODE = found; END IF;
            RETURN NEW;
        END
    $$;
    CREATE TRIGGER refuse_some BEFORE UPDATE ON transfers FOR EACH ROW EXECUTE FUNCTION refuse_some('id');
    CREATE TRIGGER refuse_some BEFORE INSERT ON order_transitions
        FOR EACH ROW EXECUTE FUNCTION refuse_some('order_id')
"""


async def refuse(database: Database, *ids: UUID, code: str = "P0001", first: bool = True) -> None:
    async with database.engine.begin() as connection:
        for statement in REFUSE.split(";\n    CREATE ") if first else ():
            await connection.exec_driver_sql(statement if "CREATE TABLE" in statement else f"CREATE {statement}")
        for one in ids:
            await connection.execute(text("INSERT INTO refused VALUES (:id, :code)"), {"id": one, "code": code})


async def run(
    uow: OpenUnitOfWork, sweeps: Sequence[Sweep[Any]] = ALL, *, slice_size: int = 4, longest: float = 50.0
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Run the sweeps; returns what was logged as an error."""
    with capture_logs() as logged:
        ended = await run_sweeps(uow, sweeps, slice_size=slice_size, longest=longest)
    return ended, [dict(line) for line in logged if line["level"] == "error"]


async def some_holds(database: Database, number: int) -> tuple[User, list[UUID]]:
    """Holds that are due, and who pays them."""
    payer, payee = await make_user(database, credits="1000"), await make_user(database)
    made = [await held(database, payer, payee, "1.00") for _ in range(number)]
    await let_the_time_run_out(database)
    return payer, made


async def test_a_hold_and_an_order_of_an_account_that_was_corrected_by_hand_do_not_affect_others(
    database: Database, uow: OpenUnitOfWork
) -> None:
    bad, good, payee = [await make_user(database, credits="100") for _ in range(3)]
    product = await make_product(database, price="10.00")
    for buyer in (good, bad, good, good):
        await place(database, buyer, (product.id, 1))
    for payer in (good, good, bad, good):
        await held(database, payer, payee, "1.00")
    await let_the_time_run_out(database)
    await rows(database, "UPDATE accounts SET held = 0 WHERE user_id = :id", id=bad.id)

    ended, errors = await run(uow)

    assert ended == {"unpaid_orders": 0, "held_orders": 3, "holds": 3}
    assert await balances(database, good) == ["(100.00,0.00)"]
    [order] = await rows(database, "SELECT id::text FROM orders WHERE buyer_id = :id", id=bad.id)
    [hold] = await rows(database, "SELECT id::text FROM transfers WHERE state = 'pending' AND order_id IS NULL")
    assert await rows(database, FAILURES) == [("held_orders", order, 1), ("holds", hold, 1)]
    # One line a sweep, which names the row and says why.
    assert [(line["event"], line["sweep"], line["rows"]) for line in errors] == [
        (LEFT_OUT, "held_orders", 1),
        (LEFT_OUT, "holds", 1),
    ]
    assert [line["named"][0]["subject"] for line in errors] == [order, hold]
    assert all("ck_accounts_held" in line["named"][0]["error"] for line in errors)

    # It is left out until its next attempt, and fails again until the row is repaired.
    assert await run(uow) == ({"unpaid_orders": 0, "held_orders": 0, "holds": 0}, [])
    await rows(database, DUE_AGAIN)
    _, errors = await run(uow)
    assert [line["named"][0]["attempts"] for line in errors] == [2, 2]
    later = "SELECT next_at > last_at + interval '50 seconds' FROM sweep_failures"
    assert await rows(database, later) == [True, True]

    await rows(database, "UPDATE accounts SET held = 11 WHERE user_id = :id", id=bad.id)
    await rows(database, DUE_AGAIN)
    assert await run(uow) == ({"unpaid_orders": 0, "held_orders": 1, "holds": 1}, [])
    assert await rows(database, FAILURES) == []
    assert await balances(database, bad, good) == ["(100.00,0.00)", "(100.00,0.00)"]
    await assert_balanced(database)
    await assert_nothing_differs(database)


async def test_a_refused_unpaid_order_does_not_keep_others_from_being_cancelled(
    database: Database, uow: OpenUnitOfWork
) -> None:
    poor, product = await make_user(database), await make_product(database)
    for _ in range(6):
        await place(database, poor, (product.id, 1))
    await let_the_time_run_out(database)
    ids = await rows(database, "SELECT id FROM orders ORDER BY id")
    await refuse(database, ids[2])

    ended, [error] = await run(uow)

    assert (ended["unpaid_orders"], error["named"][0]["subject"]) == (5, str(ids[2]))
    assert "not this one" in error["named"][0]["error"]
    assert await rows(database, "SELECT id FROM orders WHERE status = 'awaiting_payment'") == [ids[2]]


async def test_more_bad_rows_than_one_transaction_has_savepoints_for_are_all_found(
    database: Database, uow: OpenUnitOfWork
) -> None:
    _, ids = await some_holds(database, 90)
    await refuse(database, *ids[::2])

    ended, [error] = await run(uow, slice_size=200)

    assert (ended["holds"], error["rows"], len(error["named"])) == (45, 45, 20)
    assert await rows(database, "SELECT count(*), max(attempts) FROM sweep_failures") == [(45, 1)]
    assert await rows(database, "SELECT id FROM transfers WHERE state = 'pending' ORDER BY id") == sorted(ids[::2])


async def test_rows_that_only_the_commit_refuses_are_found_too(database: Database, uow: OpenUnitOfWork) -> None:
    _, ids = await some_holds(database, 5)
    await refuse(database, ids[3])
    await rows(database, "DROP TRIGGER refuse_some ON transfers")
    await rows(
        database,
        "CREATE CONSTRAINT TRIGGER refuse_some AFTER UPDATE ON transfers DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION refuse_some('id')",
    )

    ended, [error] = await run(uow)

    assert (ended["holds"], error["named"][0]["subject"]) == (4, str(ids[3]))


async def test_locked_rows_are_skipped_at_once_and_have_not_failed(
    database: Database, uow: OpenUnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The sweep does not wait, and the next slice begins after these rows.
    monkeypatch.setattr(service, "LOCK_TIMEOUT", 300.0)
    busy, payee = await make_user(database, credits="100"), await make_user(database)
    product = await make_product(database, price="10.00")
    await place(database, busy, (product.id, 1))
    await held(database, busy, payee, "1.00")
    _, ids = await some_holds(database, 5)

    lock = text("SELECT FROM accounts WHERE user_id = :id FOR UPDATE")
    async with database.engine.connect() as somebody:
        await somebody.execute(lock, {"id": busy.id})
        await somebody.execute(text("SELECT FROM transfers WHERE id = :id FOR UPDATE"), {"id": ids[1]})
        passing = asyncio.wait_for(run(uow, slice_size=1), 20)
        assert await passing == ({"unpaid_orders": 0, "held_orders": 0, "holds": 4}, [])
    assert await rows(database, FAILURES) == []
    assert await balances(database, busy) == ["(100.00,11.00)"]

    assert await run(uow) == ({"unpaid_orders": 0, "held_orders": 1, "holds": 2}, [])
    await assert_nothing_differs(database)


async def test_credits_are_released_even_if_the_recipient_is_locked(database: Database, uow: OpenUnitOfWork) -> None:
    payer, payee = await make_user(database, credits="100"), await make_user(database)
    await held(database, payer, payee, "1.00")
    await let_the_time_run_out(database)
    async with database.engine.connect() as somebody:
        await somebody.execute(text("SELECT FROM accounts WHERE user_id = :id FOR UPDATE"), {"id": payee.id})
        assert (await run(uow))[0]["holds"] == 1


async def test_a_locked_table_keeps_only_its_own_sweeps_waiting(database: Database, uow: OpenUnitOfWork) -> None:
    poor, product = await make_user(database), await make_product(database)
    await place(database, poor, (product.id, 1))
    await some_holds(database, 5)
    async with database.engine.connect() as somebody:
        await somebody.execute(text("LOCK TABLE orders"))
        passing = asyncio.wait_for(run(uow), 20)
        assert await passing == ({"unpaid_orders": 0, "held_orders": 0, "holds": 5}, [])
        await somebody.rollback()
        await somebody.execute(text("LOCK TABLE order_transitions"))
        passing = asyncio.wait_for(run(uow), 20)
        assert await passing == ({"unpaid_orders": 0, "held_orders": 0, "holds": 0}, [])
    assert await rows(database, FAILURES) == []
    assert (await run(uow))[0]["unpaid_orders"] == 1


async def test_if_the_server_cannot_work_no_row_is_blamed_and_the_other_sweeps_go_on(
    database: Database, uow: OpenUnitOfWork
) -> None:
    poor, product = await make_user(database), await make_product(database)
    for _ in range(3):
        await place(database, poor, (product.id, 1))
    await some_holds(database, 5)
    [order] = await rows(database, "SELECT id FROM orders LIMIT 1")
    await refuse(database, order, code="53100")

    with capture_logs() as logged, pytest.raises(Exception, match="not this one"):
        await run_sweeps(uow, ALL, slice_size=4)

    assert [(line["event"], line["sweep"]) for line in logged] == [("sweep ended early", "unpaid_orders")]
    assert await rows(database, FAILURES) == []
    assert await rows(database, EXPIRED) == [5]


async def test_if_orders_cannot_be_read_holds_still_expire(database: Database, uow: OpenUnitOfWork) -> None:
    await some_holds(database, 5)
    await rows(database, "ALTER TABLE orders RENAME COLUMN expires_at TO ends_at")

    with pytest.raises(DBAPIError, match="expires_at"):
        await run_sweeps(uow, ALL, slice_size=4)

    assert await rows(database, EXPIRED) == [5]


async def test_sweeps_take_turns_and_the_next_run_continues_one_that_takes_too_long(
    database: Database, uow: OpenUnitOfWork
) -> None:
    poor, product = await make_user(database), await make_product(database)
    for _ in range(5):
        await place(database, poor, (product.id, 1))
    await some_holds(database, 5)
    ended = [(await run(uow, slice_size=2, longest=0))[0] for _ in range(3)]
    assert ended == [{"unpaid_orders": number, "held_orders": 0, "holds": number} for number in (2, 2, 1)]


async def test_a_failure_is_forgotten_when_something_else_has_ended_the_row(
    database: Database, uow: OpenUnitOfWork
) -> None:
    _, ids = await some_holds(database, 3)
    await refuse(database, ids[0], ids[1])
    await run(uow)
    await rows(database, "DELETE FROM refused")
    await rows(database, "UPDATE transfers SET state = 'voided', resolved_at = now() WHERE id = :id", id=ids[0])
    await rows(
        database, "UPDATE sweep_failures SET next_at = now() - interval '1 hour' WHERE subject = :id", id=str(ids[0])
    )
    assert (await run(uow))[0]["holds"] == 0
    assert await rows(database, FAILURES) == [("holds", str(ids[1]), 1)]


async def test_a_slice_that_two_runs_work_on_at_once_ends_each_row_once(
    database: Database, uow: OpenUnitOfWork
) -> None:
    first, _ = await some_holds(database, 3)
    second, ids = await some_holds(database, 9)
    await refuse(database, ids[5])
    async with UnitOfWork(database.write) as other:
        assert len(await HOLDS.end(other, await HOLDS.find(other, None, 3))) == 3
        assert (await run(uow))[0]["holds"] == 8
        await other.commit()
    assert (await run(uow))[0]["holds"] == 0
    assert await balances(database, first, second) == ["(1000.00,0.00)", "(1000.00,1.00)"]
    assert await rows(database, "SELECT count(*) FROM events WHERE type = 'credits.released'") == [11]
