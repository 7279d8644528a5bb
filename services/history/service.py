"""Writing the history, and reading it as series for charts."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from services.history.schemas import LENGTHS, Done, History, Period
from services.sql import Row
from services.unit_of_work import UnitOfWork


async def write(uow: UnitOfWork, worker_id: UUID, done: Done) -> None:
    """Add what a worker did. The first worker in a slot also notes what waits."""
    if not await uow.history.write(worker_id, done):
        found = await uow.control.backlog(retrying=False)
        await uow.history.note(worker_id, found["waiting"], found["dead_letters"], found["oldest_due_seconds"])


async def read(uow: UnitOfWork, period: Period) -> History:
    """The series of a period."""
    length, step = LENGTHS[period]
    rows = await uow.history.read(timedelta(seconds=length), timedelta(seconds=step))
    return _series(rows, period)


def _series(rows: Sequence[Row], period: Period) -> History:
    length, step = LENGTHS[period]
    steps = length // step
    by_number = {row["number"]: row for row in rows}
    until = rows[0]["until"] if rows else 0.0
    numbers = range(steps - 1, -1, -1) if rows else ()
    found = [by_number.get(number) for number in numbers]
    return History(
        period=period,
        step=step,
        times=[until - number * step for number in numbers],
        recorded=_recorded(found),
        processed=[None if row is None else row["processed"] / step for row in found],
        failed=[None if row is None else row["failed"] / step for row in found],
        waiting=[None if row is None else row["waiting"] for row in found],
        oldest_due_seconds=[None if row is None else row["oldest_due_seconds"] for row in found],
        dead_letters=[None if row is None else row["dead_letters"] for row in found],
        queue_seconds=[_ratio(row, "queue_seconds", "queued") for row in found],
        batch_events=[_ratio(row, "processed", "batches") for row in found],
        workers=[None if row is None else row["workers"] for row in found],
    )


def _ratio(row: Row | None, sum_: str, number: str) -> float | None:
    return None if row is None or not row[number] else float(row[sum_]) / int(row[number])


def _recorded(rows: Sequence[Row | None]) -> list[float | None]:
    """Events in a second, from the positions that were taken between one look and the next."""
    rates: list[float | None] = []
    before: tuple[float, int] | None = None
    for row in rows:
        if row is None or row["last_position"] is None:
            rates.append(None)
            continue
        start = before or (row["first_at"], row["first_position"])
        seconds = row["last_at"] - start[0]
        # A restored database may have taken fewer positions.
        rates.append(max(0, row["last_position"] - start[1]) / seconds if seconds > 0 else None)
        before = row["last_at"], row["last_position"]
    return rates
