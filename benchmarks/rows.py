"""The rows of an event as `services.outbox.recording` writes them; a test compares them column by column."""

from collections.abc import Sequence
from typing import LiteralString

import psycopg

INTO_LOG: LiteralString = "INSERT INTO events (id, type, version, aggregate, payload, request_id)"
_INTO_OUTBOX: LiteralString = "INSERT INTO outbox (event_id, aggregate, type, version)"


def queue(
    connection: psycopg.Connection[tuple[object, ...]], events: LiteralString, parameters: Sequence[object] = ()
) -> None:
    """Insert an outbox row for each event that the query yields as its columns, in one commit.

    They are (event_id, aggregate, type, version).
    """
    with connection.transaction():
        # As in the engine: the transaction gets its id before it takes a position, which claims rely on.
        connection.execute("SELECT pg_current_xact_id()")
        connection.execute(f"{_INTO_OUTBOX} {events}", parameters)
