"""Groups of failures, and lists of events that wait."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from pydantic import TypeAdapter

from services import cursors
from services.errors import NotFound
from services.outbox.control.service import last_line
from services.outbox.inspection.repository import MOST_KINDS
from services.outbox.inspection.schemas import (
    BUCKETS,
    Group,
    GroupsWanted,
    History,
    Kind,
    WaitingEvent,
    WaitsFor,
    Window,
)
from services.outbox.models import OutboxRow, Waits
from services.query import PageQuery, Rows
from services.sql import Row
from services.transaction import Transaction

_COUNTED = 10_000
"""The most letters of a group that are counted."""

_READ = 10_000
"""The most letters that the counts of a page read, and again those of its histories: the fewer groups it has, the
further each is counted."""


async def groups(work: Transaction, wanted: GroupsWanted, limit: int = 20, cursor: str | None = None) -> Rows[Group]:
    """Dead letters grouped by kind of error; first the group whose latest letter died last.

    Of more than 1,000 kinds, some are left out.
    """
    after = None if cursor is None else _place(wanted, cursor)
    kinds = [one for one in (await work.inspection.kinds())[:MOST_KINDS] if _matches(one, wanted)]
    # By time, and those of one time by fingerprint.
    kinds.sort(key=lambda one: one.fingerprint)
    kinds.sort(key=lambda one: one.last_at, reverse=True)
    if after is not None:
        kinds = [one for one in kinds if (one.last_at, after[1]) < (after[0], one.fingerprint)]
    page = kinds[:limit]
    more = len(kinds) > limit
    following = cursors.encode(wanted.scope(), [page[-1].last_at, page[-1].fingerprint]) if more else None
    return Rows(await _counted(work, page, wanted.window), more, following)


async def group(work: Transaction, fingerprint: str, window: Window = Window.day) -> Group:
    """The group with this fingerprint. Raises `NotFound` if no dead letter has it."""
    kind = await work.inspection.kind(fingerprint)
    found = [] if kind is None else await _counted(work, [kind], window)
    if not found:
        raise NotFound(f"no dead letter has the fingerprint {fingerprint!r}")
    return found[0]


async def waiting(
    work: Transaction, event_type: str, reason: WaitsFor, limit: int = 50, cursor: str | None = None
) -> Rows[WaitingEvent]:
    """The events of a type that wait for this reason.

    Those that are ready come by position, those behind another event by aggregate, and the others by the time at which
    they are due. The ready events of a paused type are the paused ones. A page may have fewer events than its limit, or
    none, although there are more.
    """
    paused = await work.inspection.is_paused(event_type)
    wanted = PageQuery(limit=limit, cursor=cursor, scope=f"{event_type} {reason}")
    if reason in (WaitsFor.ready, WaitsFor.paused):
        if paused != (reason is WaitsFor.paused):
            return Rows([], False, None)
        rows = await work.inspection.ready(event_type, wanted)
    elif reason is WaitsFor.deferred:
        rows = await work.control.deferred(replace(wanted, filters=[f"type:eq:{event_type}"]))
    elif reason is WaitsFor.behind:
        by = [f"type:eq:{event_type}", f"waits:eq:{Waits.behind}"]
        rows = await work.inspection.waiting(replace(wanted, filters=by))
    else:
        rows = await work.inspection.timed(event_type, replace(wanted, filters=[f"waits:eq:{reason}"]))
    return Rows([_event(row, paused=paused) for row in rows.data], rows.has_more, rows.next_cursor)


def _matches(kind: Kind, wanted: GroupsWanted) -> bool:
    return wanted.type in (None, kind.type) and wanted.reason in (None, kind.reason)


def _place(wanted: GroupsWanted, cursor: str) -> tuple[datetime, str]:
    try:
        return TypeAdapter(tuple[datetime, str]).validate_python(tuple(cursors.decode(wanted.scope(), cursor)))
    except (ValueError, TypeError) as error:
        raise cursors.not_issued() from error


async def _counted(work: Transaction, kinds: Sequence[Kind], window: Window) -> list[Group]:
    if not kinds:
        return []
    span = window.span
    now = await work.inspection.now()
    # Whole spans, so that a history that is read again is the same.
    elapsed = (now - datetime.min.replace(tzinfo=now.tzinfo)) // span
    starts_at = datetime.min.replace(tzinfo=now.tzinfo) + (elapsed + 1 - BUCKETS) * span
    counted = min(_COUNTED, _READ // len(kinds))
    most = max(1, _READ // len(kinds) // BUCKETS)
    rows = await work.inspection.groups(kinds, starts_at, span, counted=counted, most=most)
    found = []
    for kind, row in zip(kinds, rows, strict=True):
        # It may have been replayed or discarded in the meantime.
        if row["letters"]:
            history = History(starts_at, span.total_seconds(), row["history"], most)
            found.append(_group(kind, row, counted, history))
    return found


def _group(kind: Kind, row: Row, counted: int, history: History) -> Group:
    return Group(
        fingerprint=kind.fingerprint,
        letters=min(row["letters"], counted),
        letters_is_more=row["letters"] > counted,
        aggregates=min(row["aggregates"], counted),
        first_at=row["first_at"],
        last_at=kind.last_at,
        type=kind.type,
        reason=kind.reason,
        message=last_line(row["error"] or ""),
        position=kind.position,
        history=history,
    )


_REASONS: Mapping[Waits, WaitsFor] = {
    Waits.asked: WaitsFor.deferred,
    Waits.retry: WaitsFor.retry,
    Waits.behind: WaitsFor.behind,
    Waits.begun: WaitsFor.begun,
    Waits.unknown: WaitsFor.unknown,
}


def _event(row: OutboxRow, *, paused: bool) -> WaitingEvent:
    ready = WaitsFor.paused if paused else WaitsFor.ready
    failure = row.failures[-1] if row.failures else None
    # What never ends by itself is read as a time in the far future.
    until = row.available_at if row.available_at is not None and row.available_at.year < _FAR else None
    return WaitingEvent(
        position=row.position,
        event_id=row.event_id,
        aggregate=row.aggregate,
        type=row.type,
        reason=ready if row.waits is None else _REASONS[row.waits],
        until=until,
        attempts=row.attempts,
        message=None if row.last_error is None else last_line(row.last_error),
        failed_at=None if failure is None else datetime.fromisoformat(failure["at"]),
    )


_FAR = 9000
