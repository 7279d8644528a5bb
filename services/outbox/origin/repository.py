"""Reads and corrects what depends on the cluster: transaction ids and sequences."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.outbox.origin import queries
from services.outbox.origin.schemas import Counter, Stored
from services.outbox.retention.repository import existing_partitions

ENDED = 3
"""The first ordinary transaction id. It and the next ones have ended in every cluster: `initdb` uses them up."""

MOST_GROUPS = 500
"""Below the first transaction id that a new cluster gives to anyone (731 in PostgreSQL 15)."""


async def stored(connection: AsyncConnection) -> Stored:
    """What the database stores, and whether its transaction ids are ahead of the cluster's."""
    return Stored(**(await connection.execute(text(queries.STORED))).mappings().one())


async def identifier(connection: AsyncConnection) -> int:
    """The cluster's own system identifier: made by `initdb`, and kept by physical copies."""
    return int((await connection.execute(text(queries.IDENTIFIER))).scalar_one())


async def is_migrated(connection: AsyncConnection) -> bool:
    """Whether the table exists that this module needs."""
    return bool(await connection.scalar(text(queries.MIGRATED)))


async def behind(connection: AsyncConnection) -> dict[str, int]:
    """The sequences that would give a value again which a column already has, with the column's highest value."""
    counters = [Counter(**row) for row in (await connection.execute(text(queries.COUNTERS))).mappings()]
    # A dead letter has left the outbox, but a replay puts it back at its position.
    counters += [
        Counter(one.sequence, "dead_letters", "position")
        for one in counters
        if (one.table, one.column) == ("outbox", "position")
    ]
    parts = [queries.BEHIND.format(sequence=one.sequence, table=one.table, column=one.column) for one in counters]
    found: dict[str, int] = {}
    for name, highest in await connection.execute(text(" UNION ALL ".join(parts))):
        found[name] = max(highest, found.get(name, 0))
    return found


async def advance(connection: AsyncConnection, sequence: str, highest: int) -> None:
    """Have the sequence continue after `highest`."""
    await connection.execute(text(queries.ADVANCE), {"sequence": sequence, "highest": highest})


async def lock(connection: AsyncConnection) -> None:
    """Lock out writers and readers of the log until the transaction ends."""
    for statement in queries.LOCK:
        await connection.execute(text(statement))


async def first_foreign(connection: AsyncConnection) -> int | None:
    """The lowest position of an event with a transaction id that this cluster has not reached."""
    found: int | None = await connection.scalar(text(queries.FIRST_FOREIGN))
    return found


async def groups(connection: AsyncConnection, first_foreign: int | None) -> list[str]:
    """The different sets of consumers that still have to read an event, each as a JSON array of names."""
    found = await connection.scalars(text(queries.GROUPS), {"first_foreign": first_foreign})
    return [one for one in found if one != "[]"]


async def renumber(connection: AsyncConnection, first_foreign: int | None, groups: Sequence[str]) -> int:
    """Give each event an id of a transaction that has ended, a different one for each group; returns the number."""
    changed = 0
    given: dict[str, Any] = {"first": ENDED, "groups": list(groups), "first_foreign": first_foreign}
    # One partition at a time, since a statement has a time limit.
    for partition in sorted(await existing_partitions(connection)):
        statement = queries.RENUMBER.format(partition=partition)
        changed += (await connection.execute(text(statement), given)).rowcount
    return changed


async def place(connection: AsyncConnection, groups: Sequence[str]) -> list[str]:
    """Have each consumer continue with the events of its groups; returns the consumers' names.

    One whose place is kept in another database cannot continue there, and has to be rebuilt.
    """
    row = (await connection.execute(text(queries.NOW))).mappings().one()
    running = {*row["running"], row["own"]}
    names = list(await connection.scalars(text(queries.PLACED)))
    for name in names:
        unread = {ENDED + 1 + number for number, group in enumerate(groups) if name in json.loads(group)}
        # Its own transaction, too: see `services.outbox.log.service`.
        listed = sorted(unread | {one for one in running if one < int(row["following"])})
        oldest = listed[0] if listed else row["following"]
        seen = f"{oldest}:{row['following']}:{','.join(map(str, listed))}"
        await connection.execute(text(queries.PLACE), {"name": name, "seen": seen})
    await connection.execute(text(queries.RESTART_SINKS))
    return names


async def note(connection: AsyncConnection, identifier: int | None) -> None:
    """Note that the stored ids belong to the cluster with this identifier."""
    await connection.execute(text(queries.NOTE), {"identifier": identifier})
