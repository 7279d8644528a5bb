"""The overview: numbers from several domains, and what they mean."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

from services.audit.models import LedgerAudit
from services.fields import now
from services.history import service as history
from services.history.schemas import Period
from services.jobs import service as jobs
from services.operations.overview.schemas import Attention, BooksState, Overview, Severity, Wakeups
from services.outbox.control import service as control
from services.outbox.control.schemas import Waiting, WorkerState
from services.outbox.log import service as log
from services.unit_of_work import UnitOfWork

SLOW = 60.0
"""Seconds for which an event may be due before the overview says that workers do not keep up."""

AUDITED = timedelta(hours=2)
"""An audit runs each hour: if the last one is older than this, something is wrong."""

SOME = 1000
"""How far events are counted of which it only matters that there are some."""

_MINUTE = 6
"""Steps of the shortest period in a minute."""


async def overview(uow: UnitOfWork) -> Overview:
    """How the service goes, and what needs attention."""
    recent = await history.read(uow, Period.minutes_5)
    backlog = await uow.control.backlog(retrying=False)
    workers = await control.workers(uow)
    audit = await uow.audits.latest()
    wakeups = await _wakeups(uow)
    return Overview(
        recorded=_average(recent.recorded),
        processed=_average(recent.processed),
        failed=_average(recent.failed),
        queue_seconds=_average(recent.queue_seconds),
        batch_events=_average(recent.batch_events),
        waiting=backlog["waiting"],
        waiting_is_more=backlog["waiting_is_more"],
        oldest_due_seconds=backlog["oldest_due_seconds"],
        dead_letters=backlog["dead_letters"],
        dead_letters_is_more=backlog["dead_letters_is_more"],
        workers=len(workers),
        wakeups=wakeups,
        books=None if audit is None else _books(audit),
        attention=[
            *_of_workers(workers, backlog["waiting"], backlog["oldest_due_seconds"]),
            *_of_books(audit),
            *_of_events(backlog["dead_letters"], await uow.control.waiting(SOME), wakeups),
            *await _of_upkeep(uow),
        ],
    )


async def _wakeups(uow: UnitOfWork) -> Wakeups:
    rung, polled = await uow.history.wakeups(timedelta(minutes=5))
    if rung:
        return Wakeups.doorbell
    return Wakeups.polling if polled else Wakeups.nothing


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values[-_MINUTE:] if value is not None]
    return sum(known) / len(known) if known else None


def _books(audit: LedgerAudit) -> BooksState:
    return BooksState(
        balanced=audit.differences == 0,
        differences=audit.differences,
        rows_checked=audit.rows_checked,
        started_at=audit.started_at,
        seconds=audit.seconds,
    )


def _of_workers(workers: Sequence[WorkerState], waiting: int, oldest: float) -> Iterator[Attention]:
    if not workers:
        yield _alarm("No worker is running, so no event is processed. Start one: waybill worker.")
    for worker in workers:
        if worker.complaint is not None:
            yield _alarm(f"The worker {worker.pid} on {worker.host}: {worker.complaint}.")
    if workers and waiting and oldest > SLOW:
        yield _warning(
            f"An event has been due for {oldest:.0f} s: the workers do not keep up. Start more of them, or find out "
            "why it waits: waybill outbox why."
        )


def _of_books(audit: LedgerAudit | None) -> Iterator[Attention]:
    if audit is None:
        yield _warning("No audit of the books has finished yet. To start one: waybill jobs run audit_ledger.")
        return
    if audit.differences:
        yield _alarm(
            f"The books do not balance: the last audit found {audit.differences} differences. "
            "GET /v1/operations/audit and waybill ledger audit show them."
        )
    age = now() - audit.started_at
    if age > AUDITED:
        yield _warning(f"The last audit began {age.total_seconds() / 3600:.0f} hours ago. It should run each hour.")


def _of_events(dead_letters: int, waiting: Sequence[Waiting], wakeups: Wakeups) -> Iterator[Attention]:
    if dead_letters:
        yield _warning(f"{_number(dead_letters)} have failed permanently. Find the cause, then replay or discard them.")
    for one in waiting:
        if paused := one.reasons.get("paused"):
            yield _warning(f"{one.type} is paused, and {_number(paused, SOME)} of this type wait.")
        if unknown := one.reasons.get("unknown"):
            found = _number(unknown, SOME)
            yield _alarm(f"No worker knows how to process {one.type}: {found} wait. Deploy a newer release.")
    if wakeups is Wakeups.polling:
        yield _warning("The doorbell does not ring: workers find events only by polling. Look whether Redis answers.")


async def _of_upkeep(uow: UnitOfWork) -> list[Attention]:
    found = [
        _warning(f"The job {job.name}: {job.complaint}.") for job in await jobs.jobs(uow) if job.complaint is not None
    ]
    lags = await log.lags(uow, SOME)
    found += [_warning(f"The consumer {lag.name}: {lag.complaint}.") for lag in lags if lag.complaint is not None]
    if failing := await uow.sweeps.count():
        found.append(_warning(f"{failing} due rows cannot be ended: GET /v1/operations/sweep-failures shows why."))
    return found


def _number(events: int, most: int = 10_000) -> str:
    more = "at least " if events >= most else ""
    return f"{more}{events:,} event{'s' if events != 1 else ''}"


def _alarm(text: str) -> Attention:
    return Attention(severity=Severity.alarm, text=text)


def _warning(text: str) -> Attention:
    return Attention(severity=Severity.warning, text=text)
