"""What workers do with the outbox and the dead letters."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from services.outbox.engine import queries
from services.outbox.engine.schemas import ClaimedRow, Failure, Horizon, Look, Span, first_positions
from services.sql import SqlAccess, Write

LOCK_TIMEOUT = "1s"
"""Most locks are held until a batch commits. Events that wait longer are left out, and the rest are processed."""

SHORT_LOCK_TIMEOUT = "100ms"
"""The timeout after a first lock timeout: a handler that still waits for locks does so in each part of its batch."""

_NEAR = 4
"""For each row that a claim may take, how many rows of the queue it reads to find the ones that come before."""

_CROWD = 20
"""This many parked rows of an aggregate in one claim suggest that more follow."""

_HELD_BACK = 10_000
"""The most rows, of all failed aggregates together, that one statement puts to sleep."""

_WOKEN = 2_000
"""The most rows, of all aggregates together, that one statement wakes. Each aggregate gets at least one."""

_HORIZON = TypeAdapter(Horizon)


class OutboxRepository(SqlAccess):
    """The outbox and the dead letters, as workers use them."""

    async def begin(self, time_limit: float) -> None:
        """Apply the `claim_settings` to this transaction."""
        settings = claim_settings(time_limit)
        await self.sql.fetch(queries.SET_LOCAL, names=list(settings), values=list(settings.values()))

    async def shorten_lock_timeout(self) -> None:
        """Set this transaction's lock timeout to `SHORT_LOCK_TIMEOUT`."""
        await self.sql.fetch(queries.SET_LOCAL, names=["lock_timeout"], values=[SHORT_LOCK_TIMEOUT])

    async def claim(self, spans: Sequence[Span], floor: int) -> tuple[Horizon, list[ClaimedRow]]:
        """Lock ready and due rows of the spans until the transaction ends.

        No ready row has a position below `floor` (see `Floor`). Types that are paused, or that have no free slot for
        another batch, are left out.
        """
        header, *rows = await self.sql.fetch(
            queries.CLAIM,
            types=[span.type for span in spans],
            starts=[span.first for span in spans],
            ends=[span.past for span in spans],
            ready=[span.ready for span in spans],
            due=[span.due for span in spans],
            versions=[span.version for span in spans],
            floor=floor,
            near=_NEAR * sum(span.ready + span.due for span in spans),
        )
        return _HORIZON.validate_json(header["payload"]), [ClaimedRow._make(row.values()) for row in rows]

    async def oldest_taker(self) -> int:
        """A transaction id: of the transactions that have taken a position so far, all with a lower id have ended.

        This includes those that took a position without writing a row. It reads all locks of the server.
        """
        (row,) = await self.sql.fetch(queries.TAKERS)
        own: int = row["own"]
        return min([own, *(_whole_id(taker, near=own) for taker in row["takers"])])

    async def begin_attempts(self, positions: Sequence[int], delay: float, *, counts: bool) -> None:
        """Note that these events are being tried, in case the process does not survive it.

        They are then due in `delay` seconds. `counts` says whether this counts as an attempt already.
        """
        await self.sql.run(queries.BEGIN_ATTEMPTS, positions=list(positions), delay=delay, counts=int(counts))

    async def take_up(self, positions: Sequence[int], attempts: Sequence[int]) -> tuple[int, set[int], set[int]]:
        """Lock again the rows whose attempts were noted, and restore the planner's settings, as a claim does.

        Returns the transaction's id, the positions of the rows that are still waiting with so many attempts, and those
        of them that may run: a limited type needs a free slot.
        """
        header, *rows = await self.sql.fetch(queries.TAKE_UP, positions=list(positions), attempts=list(attempts))
        free = {row["position"] for row in rows if row["free"]}
        return header["transaction"], {row["position"] for row in rows}, free

    async def leave(self, positions: Sequence[int], *, counted: bool) -> None:
        """Make rows due whose attempt was noted but did not begin. `counted` says whether it was counted."""
        await self.sql.run(queries.LEAVE, positions=list(positions), counts=int(counted))

    async def put_behind(self, delays: Mapping[int, float]) -> None:
        """Make blocked rows wait; `delays` maps positions to seconds."""
        await self.sql.run(queries.PUT_BEHIND, positions=list(delays), delays=list(delays.values()))

    async def look(self, spans: Sequence[Span]) -> Look:
        """Look for events in the spans, without claiming any."""
        (row,) = await self.sql.fetch(
            queries.LOOK,
            types=[span.type for span in spans],
            starts=[span.first for span in spans],
            versions=[span.version for span in spans],
            floor=min(span.first for span in spans),
        )
        return Look(bool(row["ready"]), row["due_in"], row["backend"], row["any_ready"])

    async def complete(self, positions: Sequence[int], transaction: int | None = None) -> int:
        """Delete the rows of processed events; return their number.

        If `transaction` is given and is not the id of this transaction, delete nothing.
        """
        return await self.sql.run(queries.COMPLETE, **_completed(positions, transaction))

    @staticmethod
    def completing(positions: Sequence[int], transaction: int) -> Write:
        """The same as `complete`, as a write to be sent together with others."""
        return Write(queries.COMPLETED, _completed(positions, transaction))

    async def park(self, positions: Sequence[int]) -> int:
        """Hide rows behind a waiting row or dead letter from claims until that one wakes them; return their number.

        If an aggregate has many of them, its rows that no claim has found yet are hidden as well.
        """
        parked = await self.sql.fetch(queries.PARK, positions=list(positions))
        first = first_positions((row["aggregate"], row["position"]) for row in parked)
        if len(parked) >= _CROWD * len(first) > 0:
            await self._hold_back(first)
        return len(parked)

    async def wake(self, passed: Mapping[str, int]) -> int:
        """Make rows due that wait behind events now out of the way; return their number.

        `passed` has the position of such an event for each aggregate; rows before it are left alone. Of an aggregate
        with many rows, only the first ones are woken, and the rest when the last of those is out of the way.
        """
        return await self.sql.run(
            queries.WAKE,
            aggregates=list(passed),
            positions=list(passed.values()),
            most=max(1, _WOKEN // max(1, len(passed))),
        )

    async def waiting_aggregates(self, after: str, limit: int) -> dict[str, bool]:
        """Up to `limit` aggregates with waiting events that come after `after`, in their order.

        The value says whether its first waiting event sleeps although nothing is left to wake it.
        """
        rows = await self.sql.fetch(queries.WAITING_AGGREGATES, after=after, most=limit)
        return {row["aggregate"]: row["stranded"] for row in rows}

    async def wake_stranded(self, aggregates: Sequence[str]) -> list[str]:
        """Wake the first event of each of these that nothing else would wake; return the aggregates of those woken."""
        rows = await self.sql.fetch(queries.WAKE_STRANDED, aggregates=list(aggregates))
        return [row["aggregate"] for row in rows]

    async def put_off(self, failures: Sequence[Failure]) -> None:
        """Make events wait, adding to their attempts what `counts`; later events of the aggregate wait behind them."""
        await self.sql.run(
            queries.PUT_OFF,
            positions=[failure.position for failure in failures],
            waits=[failure.waits.value for failure in failures],
            counts=[failure.counts for failure in failures],
            once=[not failure.is_attempt for failure in failures],
            delays=[failure.delay for failure in failures],
            errors=[failure.error for failure in failures],
            failures=[failure.entry for failure in failures],
        )
        await self._hold_back(first_positions((failure.aggregate, failure.position) for failure in failures))

    async def bury(self, failures: Sequence[Failure]) -> None:
        """Turn events into dead letters. The aggregate's later events wait behind those that block."""
        await self.sql.run(
            queries.BURY,
            positions=[failure.position for failure in failures],
            errors=[failure.error for failure in failures],
            fingerprints=[failure.fingerprint for failure in failures],
            failures=[failure.entry for failure in failures],
            blocks=[failure.blocks for failure in failures],
            reasons=[failure.reason.value for failure in failures],
            counts=[failure.counts for failure in failures],
        )
        await self._hold_back(
            first_positions((failure.aggregate, failure.position) for failure in failures if failure.blocks)
        )
        passed = first_positions((failure.aggregate, failure.position) for failure in failures if not failure.blocks)
        if passed:
            await self.wake(passed)

    async def park_unknown(self, known: Mapping[str, int], floor: int, batch: int) -> int:
        """Make events at the head of the queue wait if no live worker knows them; return the number of rows.

        `known` has the version that this worker knows of each type. They are due immediately for a worker that knows
        their type and version.
        """
        return await self.sql.run(
            queries.PARK_UNKNOWN, types=list(known), versions=list(known.values()), floor=floor, slice=batch
        )

    async def _hold_back(self, failed: Mapping[str, int]) -> None:
        """Put rows to sleep that come after the position of each aggregate."""
        if failed:
            await self.sql.run(
                queries.HOLD_BACK,
                aggregates=list(failed),
                positions=list(failed.values()),
                most=max(1, _HELD_BACK // len(failed)),
            )


def claim_settings(time_limit: float) -> dict[str, str]:
    """PostgreSQL settings for a transaction that claims. No statement in it may take longer than `time_limit` seconds.

    The statistics of a queue are usually outdated: if they were collected when it was empty or huge, the planner reads
    and sorts all of it. These settings keep the claim on its indexes; the claim resets them for the handlers.
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


def _whole_id(lower: int, *, near: int) -> int:
    """The transaction id with these lower 32 bits that is closest to `near`: running transactions are close enough."""
    return near + (lower - near + 2**31) % 2**32 - 2**31
