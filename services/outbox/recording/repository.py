"""Writes the events of a unit of work, and its acts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from services.acting import LONGEST_ACTOR, LONGEST_ADDRESS, Act
from services.fields import made_storable
from services.outbox.events import Recorded
from services.outbox.recording import queries
from services.sql import SqlAccess, Write

LONGEST_OBJECT = 200
LONGEST_REASON = 500


class RecordingRepository(SqlAccess):
    """The event log, the outbox and the audit log, as a unit of work writes to them."""

    @staticmethod
    def appending(recorded: Sequence[Recorded]) -> Write:
        """Write events to the log, each with its trace, and an outbox row for each one that is queued."""
        return Write(queries.APPEND, _columns(recorded))

    @staticmethod
    def keeping(acts: Sequence[Act]) -> Write:
        """Write acts to the audit log. Texts that are too long are cut: an act is not refused for its description."""
        parameters = {
            "actions": [one.action.value for one in acts],
            "objects": [_cut(one.object, LONGEST_OBJECT) for one in acts],
            "actors": [_cut(one.by.actor, LONGEST_ACTOR) for one in acts],
            "user_ids": [one.by.user_id for one in acts],
            "addresses": [_cut(one.by.address, LONGEST_ADDRESS) for one in acts],
            "request_ids": [one.request_id for one in acts],
            "reasons": [_cut(one.reason, LONGEST_REASON) for one in acts],
            "details": [json.dumps(_storable(one.details), default=str) for one in acts],
            "numbers": [one.number for one in acts],
        }
        return Write(queries.KEEP_ACTS, parameters, wanted=len(acts))

    @staticmethod
    def reserving(aggregates: Sequence[str], work: str) -> Write:
        """Note that the transaction writes events of these aggregates; counts those that another one also writes.

        `work` is the name that others see. For development: see `Settings.checks_order`.
        """
        return Write(queries.RESERVE, {"aggregates": list(aggregates), "work": work})

    async def other_writers(self, aggregates: Sequence[str]) -> list[tuple[str, int, str]]:
        """Other running transactions that write events of these: the aggregate, the server process and its work."""
        rows = await self.sql.fetch(queries.OTHER_WRITERS, aggregates=list(aggregates))
        return [(row["aggregate"], row["pid"], row["application_name"]) for row in rows]


def _cut(text: str | None, longest: int) -> str | None:
    return None if text is None else made_storable(text)[:longest]


def _storable(value: Any) -> Any:
    """The same details with texts that `jsonb` can hold. It comes before JSON's escapes, which a text may look like."""
    match value:
        case str():
            return made_storable(value)
        case Mapping():
            return {name: _storable(one) for name, one in value.items()}
        case list() | tuple():
            return [_storable(one) for one in value]
    return value


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
        "actors": [one.trace.actor for one in recorded],
        "queued": [event.queued for event in events],
        "available_ats": [one.available_at for one in recorded],
    }
