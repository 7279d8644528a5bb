"""Helpers for tests: assert which events were recorded, and process the outbox until nothing is due."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlmodel.ext.asyncio.session import AsyncSession

from services.database import Database, SessionFactory
from services.outbox.engine.schemas import Outcome
from services.outbox.engine.service import Processor
from services.outbox.events import Event
from services.sql import Sql, Statement
from services.transaction import Transaction

EventT = TypeVar("EventT", bound=Event)

_SHOWN = 10
"""The most events that a failing assertion lists."""

_WRITTEN = Statement("""
    SELECT type, aggregate, payload FROM events
    WHERE NOT CAST(:own AS boolean) OR transaction_id = pg_current_xact_id_if_assigned()
    ORDER BY position
""")


Recorded: TypeAlias = Transaction | Database | SessionFactory
"""Where to look: an open unit of work (its events, written or not), or what has been committed."""


class TooMuchWork(AssertionError):
    """Something in the outbox was still due after the allowed number of transactions."""


@dataclass(frozen=True, slots=True)
class _Found:
    """An event as it was recorded. `event` is None if it has another type, or no longer fits its model."""

    type: str
    aggregate: str
    payload: dict[str, Any]
    event: Event | None


async def assert_recorded(where: Recorded, event_type: type[EventT], **fields: Any) -> EventT:
    """Assert that an event of this type with these fields was recorded, and return the last one that was.

    `where` is an open unit of work (what its transaction has recorded, written or not), or a `Database` or a session
    factory (what has been committed). `fields` are compared with the event's fields and its `aggregate`. If the
    assertion fails, the error lists what was recorded instead, closest match first. Raises `TypeError` for a field that
    the event does not have.
    """
    if unknown := sorted(name for name in fields if name not in event_type.model_fields and name != "aggregate"):
        known = ", ".join(("aggregate", *event_type.model_fields))
        raise TypeError(f"{event_type.__name__} has no {', '.join(unknown)}; it has {known}")
    found = await _recorded(where, event_type)
    for candidate in reversed(found):
        if isinstance(candidate.event, event_type) and not _differences(candidate.event, fields):
            return candidate.event
    raise AssertionError(_explain(event_type, fields, found))


async def drain(processor: Processor[Any], transactions: int = 1000) -> list[Outcome]:
    """Process events until nothing in the outbox is due; return what each transaction did.

    Events that wait for their time or for another event are left waiting. Raises `TooMuchWork` if something is still
    due after this many transactions, for example because a handler always fails and is retried without a delay.
    """
    outcomes: list[Outcome] = []
    idle = Outcome()
    while len(outcomes) < transactions:
        outcome = await processor.run_once()
        if outcome == idle:
            return outcomes
        outcomes.append(outcome)
    raise TooMuchWork(f"the outbox still has work after {transactions} transactions; the last one did {outcome}")


async def _recorded(where: Recorded, event_type: type[Event]) -> list[_Found]:
    if isinstance(where, Database):
        where = where.write
    if isinstance(where, async_sessionmaker):
        async with where() as session:
            return await _written(session, event_type, own=False)
    written = await _written(where.session, event_type, own=True)
    pending = [
        _Found(
            event.type,
            event.aggregate,
            event.model_dump(mode="json"),
            event if type(event) is event_type else None,
        )
        for event in where.recorded
    ]
    return written + pending


async def _written(session: AsyncSession, event_type: type[Event], *, own: bool) -> list[_Found]:
    rows = await Sql.of(session).fetch(_WRITTEN, own=own)
    return [
        _Found(row["type"], row["aggregate"], row["payload"], _read(event_type, row["type"], row["payload"]))
        for row in rows
    ]


def _read(event_type: type[Event], written_type: str, payload: dict[str, Any]) -> Event | None:
    if written_type != event_type.type:
        return None
    try:
        return event_type.model_validate(payload)
    except ValidationError:
        return None


def _differences(event: Event, fields: dict[str, Any]) -> list[str]:
    return [f"{name} is {getattr(event, name)!r}" for name, wanted in fields.items() if getattr(event, name) != wanted]


def _explain(event_type: type[Event], fields: dict[str, Any], found: Sequence[_Found]) -> str:
    wanted = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    asked = f"{event_type.type} was not recorded{f' with {wanted}' if wanted else ''}"
    if not found:
        return f"{asked}; nothing was recorded"
    told: list[tuple[int, str]] = []
    for candidate in found:
        if isinstance(candidate.event, event_type):
            differences = _differences(candidate.event, fields)
            told.append((len(differences), f"{candidate.type}: {', '.join(differences)}"))
        elif candidate.type == event_type.type:
            told.append((len(fields) + 1, f"{candidate.type}, which does not fit its model: {candidate.payload}"))
        else:
            told.append((len(fields) + 2, f"{candidate.type} of {candidate.aggregate}: {candidate.payload}"))
    # The sort is stable: of equally close matches, the earlier one comes first.
    told.sort(key=lambda line: line[0])
    lines = [line for _, line in told[:_SHOWN]]
    if len(told) > _SHOWN:
        lines.append(f"and {len(told) - _SHOWN} more")
    return "\n  ".join((f"{asked}. Recorded instead, closest match first:", *lines))
