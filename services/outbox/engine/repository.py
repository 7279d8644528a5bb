"""What writers and workers do with the outbox, the event log and the dead letters."""

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from services.outbox.engine import queries
from services.outbox.engine.schemas import ClaimedRow, Failure, Horizon, Span
from services.outbox.events import Recorded
from services.sql import SqlAccess, Write

LOCK_TIMEOUT = "1s"
"""Ordinary locks are held until a batch commits. Events that wait longer are left out, and the rest processed."""

SHORT_LOCK_TIMEOUT = "100ms"
"""The same once a lock was not granted: a handler that waits for it all the same waits with each part of its batch."""

_NEAR = 4
"""Rows of the queue that a claim looks at for each that it may take, to find what comes before those."""

_CROWD = 20
"""Rows of an aggregate in one claim that tell of more behind them."""

_HORIZON = TypeAdapter(Horizon)


class OutboxRepository(SqlAccess):
    """The event log, the outbox and the dead letters, as writers and workers use them."""

    @staticmethod
    def appending(recorded: Sequence[Recorded]) -> Write:
        """Write events to the log, each with where it came from, and an outbox row for each that is queued."""
        return Write(queries.APPEND, _columns(recorded))

    async def begin(self, time_limit: float) -> None:
        """Give this transaction the `claim_settings`."""
        settings = claim_settings(time_limit)
        await self.sql.fetch(queries.SET_LOCAL, names=list(settings), values=list(settings.values()))

    async def shorten_lock_timeout(self) -> None:
        """Let this transaction wait for a lock for `SHORT_LOCK_TIMEOUT` only."""
        await self.sql.fetch(queries.SET_LOCAL, names=["lock_timeout"], values=[SHORT_LOCK_TIMEOUT])

    async def claim(self, spans: Sequence[Span], floor: int) -> tuple[Horizon, list[ClaimedRow]]:
        """Lock ready and due rows of the spans until the transaction ends.

        No ready row has a position below `floor` (see `Floor`). Types that are paused, or whose batches are all under
        way, are left out.
        """
        header, *rows = await self.sql.fetch(
            queries.CLAIM,
            types=[span.type for span in spans],
            starts=[span.first for span in spans],
            ends=[span.past for span in spans],
            ready=[span.ready for span in spans],
            due=[span.due for span in spans],
            floor=floor,
            near=_NEAR * sum(span.ready + span.due for span in spans),
        )
        return _HORIZON.validate_json(header["payload"]), [ClaimedRow._make(row.values()) for row in rows]

    async def oldest_taker(self) -> int:
        """An id: transactions with a lower one that have taken a position so far, rows or not, have ended.

        It costs a look at all locks of the server.
        """
        (row,) = await self.sql.fetch(queries.TAKERS)
        own: int = row["own"]
        return min([own, *(_whole_id(taker, near=own) for taker in row["takers"])])

    async def transaction(self) -> int | None:
        """The id of this transaction, as its claim's horizon says it; None where it has written nothing."""
        (row,) = await self.sql.fetch(queries.TRANSACTION)
        found: int | None = row["id"]
        return found

    async def was_committed(self, transaction: int) -> bool:
        """Whether the transaction with this id is over and took effect."""
        (row,) = await self.sql.fetch(queries.COMMITTED, transaction=str(transaction))
        return bool(row["committed"])

    async def look(self, spans: Sequence[Span]) -> tuple[bool, float | None]:
        """Whether a claim may find something now, and in how many seconds something that waits is due."""
        (row,) = await self.sql.fetch(
            queries.LOOK, types=[span.type for span in spans], starts=[span.first for span in spans]
        )
        return bool(row["ready"]), row["due_in"]

    async def complete(self, positions: Sequence[int], transaction: int | None = None) -> int:
        """Delete the rows of processed events; their number. With `transaction`, only if this is the one of that id."""
        return await self.sql.run(queries.COMPLETE, **_completed(positions, transaction))

    @staticmethod
    def completing(positions: Sequence[int], transaction: int) -> Write:
        """`complete`, to be sent with other writes."""
        return Write(queries.COMPLETED, _completed(positions, transaction))

    async def park(self, positions: Sequence[int]) -> int:
        """Take rows out of the scan that wait behind one that waits itself, until that one wakes them; their number.

        Where an aggregate has many of them, those that no claim has met yet are taken out with them.
        """
        parked = await self.sql.fetch(queries.PARK, positions=list(positions))
        first: dict[str, int] = {}
        for row in parked:
            first[row["aggregate"]] = min(row["position"], first.get(row["aggregate"], row["position"]))
        if len(parked) >= _CROWD * len(first) > 0:
            await self.sql.run(queries.HOLD_BACK, aggregates=list(first), positions=list(first.values()))
        return len(parked)

    async def wake(self, aggregates: Sequence[str]) -> int:
        """Make due what waits behind something of these aggregates that is now out of the way; the number of rows."""
        return await self.sql.run(queries.WAKE, aggregates=list(aggregates))

    async def put_off(self, failures: Sequence[Failure]) -> None:
        """Let events wait, with an attempt counted where it `counts`; later ones of the aggregate wait behind."""
        await self.sql.run(
            queries.PUT_OFF,
            positions=[failure.position for failure in failures],
            waits=[failure.waits.value for failure in failures],
            counts=[int(failure.counts) for failure in failures],
            delays=[failure.delay for failure in failures],
            errors=[failure.error for failure in failures],
            failures=[failure.entry for failure in failures],
        )
        await self._hold_back(failures)

    async def bury(self, failures: Sequence[Failure]) -> None:
        """Make dead letters of events; later ones of the aggregate wait behind those that block."""
        await self.sql.run(
            queries.BURY,
            positions=[failure.position for failure in failures],
            errors=[failure.error for failure in failures],
            fingerprints=[failure.fingerprint for failure in failures],
            failures=[failure.entry for failure in failures],
            blocks=[failure.blocks for failure in failures],
        )
        await self._hold_back([failure for failure in failures if failure.blocks])
        passed = [failure.aggregate for failure in failures if not failure.blocks]
        if passed:
            await self.wake(passed)

    async def park_unknown(self, known: Sequence[str], floor: int, batch: int) -> int:
        """Let events at the head of the queue wait whose types are not among `known`; the number of rows.

        They are due for whoever knows them.
        """
        return await self.sql.run(queries.PARK_UNKNOWN, known=list(known), floor=floor, slice=batch)

    async def _hold_back(self, failures: Sequence[Failure]) -> None:
        if failures:
            await self.sql.run(
                queries.HOLD_BACK,
                aggregates=[failure.aggregate for failure in failures],
                positions=[failure.position for failure in failures],
            )


def claim_settings(time_limit: float) -> dict[str, str]:
    """PostgreSQL's settings for a transaction that claims; no statement of it may run for longer than so many seconds.

    The statistics of a queue are of another hour: taken of an empty or a huge one, they make the planner read and sort
    all of it. The claim is planned for the indexes that were made for it, and sets these back for the handlers.
    """
    return {
        "statement_timeout": str(int(time_limit * 1000)),
        "lock_timeout": LOCK_TIMEOUT,
        "enable_seqscan": "off",
        "enable_bitmapscan": "off",
        "enable_sort": "off",
        "plan_cache_mode": "force_generic_plan",
    }


def _completed(positions: Sequence[int], transaction: int | None) -> dict[str, Any]:
    return {"positions": list(positions), "transaction": None if transaction is None else str(transaction)}


def _columns(recorded: Sequence[Recorded]) -> dict[str, list[Any]]:
    events = [one.event for one in recorded]
    return {
        "ids": [one.event_id for one in recorded],
        "types": [event.type for event in events],
        "versions": [event.version for event in events],
        "aggregates": [event.aggregate for event in events],
        "payloads": [event.model_dump_json() for event in events],
        "request_ids": [one.trace.request_id for one in recorded],
        "traceparents": [one.trace.traceparent for one in recorded],
        "queued": [event.queued for event in events],
        "available_ats": [one.available_at for one in recorded],
    }


def _whole_id(lower: int, *, near: int) -> int:
    """The transaction id with these 32 bits that is nearest to another one; those of running ones are near enough."""
    return near + (lower - near + 2**31) % 2**32 - 2**31
