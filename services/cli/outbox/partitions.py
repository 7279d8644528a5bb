"""Months of the event log: create the missing partitions at once, for when the scheduled job cannot."""

from datetime import timedelta
from functools import partial

from sqlalchemy.ext.asyncio import AsyncConnection

from services.cli.console import plain_errors, say
from services.cli.run import Yes, confirm, in_one, in_several
from services.outbox.retention import service as retention
from services.outbox.retention.repository import MONTHS_AHEAD, add_partitions, months_from
from services.skew import database_time
from services.unit_of_work import UnitOfWork


def partitions(yes: Yes = False) -> None:
    """Create the missing partitions of the event log, and move events that have none into theirs.

    A scheduled job does this while everything runs, but it moves only a limited number of events. This command moves
    any number, and blocks claims and writers until it is done: stop the API and the workers first.
    """
    confirm("are the API and the workers stopped?", yes=yes)
    with plain_errors():
        months = in_one(wanted_months)
        made = [name for names in in_several(partial(add_month, month=month) for month in months) for name in names]
    say(f"Created {', '.join(made)}." if made else "No partition is missing.")


async def wanted_months(uow: UnitOfWork) -> list[tuple[int, int]]:
    """This month, the next three, and earlier ones with events in the default partition, as (year, month)."""
    connection = await uow.session.connection()
    today = await database_time(connection)
    ahead = months_from(today.date(), MONTHS_AHEAD)
    strays = await retention.stray_months(connection, today + timedelta(days=31 * (MONTHS_AHEAD + 1)))
    return sorted({*ahead, *(month for month in strays if month <= ahead[-1])})


async def add_month(uow: UnitOfWork, month: tuple[int, int]) -> list[str]:
    """Create the partition unless it exists, and move its events there; returns the names of what was created."""
    connection: AsyncConnection = await uow.session.connection()
    return await add_partitions(connection, [month], most_moved=None)
