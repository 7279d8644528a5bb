"""Lets time pass for holds and orders, and then runs what the scheduled job runs."""

from sqlalchemy import text

from services.credits.holds.service import HOLDS
from services.database import Database
from services.orders.expiry.service import HELD, UNPAID
from services.sweeps.service import take_slice
from services.unit_of_work import UnitOfWork
from tests.api.audited import run_audit


async def let_the_time_run_out(database: Database) -> None:
    """Make every hold, and every order that awaits payment, expire a second ago."""
    async with database.engine.begin() as connection:
        # A trigger keeps a transfer's end from being changed once it is written.
        await connection.execute(text("SET LOCAL session_replication_role = replica"))
        ended = "expires_at = now() - interval '1 second'"
        await connection.execute(text(f"UPDATE transfers SET {ended} WHERE state = 'pending'"))
        await connection.execute(text(f"UPDATE orders SET {ended} WHERE status = 'awaiting_payment'"))


async def sweep(database: Database, limit: int = 100) -> tuple[int, int]:
    """Take one slice of each kind of order and one of holds, as the job does; returns how many of each have ended."""
    async with UnitOfWork(database.write) as uow:
        orders = (await take_slice(uow, UNPAID, None, limit)).ended + (await take_slice(uow, HELD, None, limit)).ended
        held = (await take_slice(uow, HOLDS, None, limit)).ended
        await uow.commit()
    return orders, held


async def assert_nothing_differs(database: Database) -> None:
    """An audit of everything finds no difference."""
    _, found = await run_audit(database)
    assert found == [], [difference.message for difference in found]
