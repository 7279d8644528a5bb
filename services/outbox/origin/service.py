"""Recognises a database that came from another cluster, by `pg_dump` or by logical replication, and adapts it.

The event log stores transaction ids, and its consumers store snapshots of them. In another cluster they are
meaningless: consumers would consider new events as read and silently get nothing, and retention would drop months that
are still unread. Logical replication also leaves the sequences behind, so that positions are given again, and the order
of events is lost.

`check` refuses before the log is read or dropped; `check_start` before a process starts. A physical copy
(`pg_basebackup`, a standby, point-in-time recovery) is the same cluster and needs nothing. After `pg_upgrade` the ids
are right, but the cluster has another identifier: `rebase` then only notes it.
"""

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.errors import CannotStart, Conflict
from services.outbox.origin import repository
from services.outbox.origin.schemas import Rebased

_MEND = "stop the API and the workers, run `waybill outbox rebase`, and start them again"


class RebaseNeeded(CannotStart):
    """The database came from another cluster and has not been adapted to this one. The message names the command."""


async def check(connection: AsyncConnection) -> None:
    """Raises `RebaseNeeded` if the stored transaction ids do not belong to this cluster."""
    found = await complaint_of_reads(connection)
    if found is not None:
        raise RebaseNeeded(found)


async def complaint_of_reads(connection: AsyncConnection) -> str | None:
    """Why `check` refuses; None if it does not."""
    found = await repository.stored(connection)
    same = found.identifier is None or not found.readable or found.identifier == await repository.identifier(connection)
    if same and not found.ahead:
        return None
    return (
        "the event log's transaction ids may belong to another cluster (was the database restored from a dump, "
        f"replicated or upgraded?), so it can be neither read nor dropped: {_MEND}"
    )


async def complaint(connection: AsyncConnection) -> str | None:
    """Why the API and the workers must not run on this database; None if they may.

    If only the cluster's identifier differs, they may: new ids are above the stored ones. Then only `check` refuses.
    """
    if not await repository.is_migrated(connection):
        return None
    if (await repository.stored(connection)).ahead:
        return f"the database contains transaction ids of another cluster (was it restored from a dump?): {_MEND}"
    if behind := await repository.behind(connection):
        names = ", ".join(sorted(behind))
        return (
            f"sequences are behind the values in their tables: {names} (was the database copied by logical "
            f"replication?): {_MEND}"
        )
    return None


async def check_start(engine: AsyncEngine) -> None:
    """Raises `RebaseNeeded` if the API and the workers must not run on this database."""
    async with engine.connect() as connection:
        found = await complaint(connection)
    if found is not None:
        raise RebaseNeeded(found)


async def rebase(connection: AsyncConnection) -> Rebased:
    """Adapt the database to the cluster that it is in. The API and the workers must be stopped.

    Sequences continue after the values in their tables. If stored transaction ids are ahead of the cluster's, every
    event gets a new one, and every consumer continues with exactly the events that it had not read. Takes as long as
    rewriting the log. Safe to repeat. Raises `Conflict` if there are too many consumers at different places.
    """
    behind = await repository.behind(connection)
    for sequence, highest in behind.items():
        await repository.advance(connection, sequence, highest)
    await repository.lock(connection)
    found = await repository.stored(connection)
    events, consumers = 0, []
    if found.ahead:
        first_foreign = await repository.first_foreign(connection)
        groups = await repository.groups(connection, first_foreign)
        if len(groups) > repository.MOST_GROUPS:
            raise Conflict("the consumers are at too many different places: reset or delete some of them first")
        events = await repository.renumber(connection, first_foreign, groups)
        consumers = await repository.place(connection, groups)
    await repository.note(connection, await repository.identifier(connection) if found.readable else None)
    return Rebased(tuple(sorted(behind)), events, tuple(consumers))
