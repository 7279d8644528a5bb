"""The event log, the outbox, the dead letters, and what operators say of them."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Identity,
    Index,
    Integer,
    Sequence,
    SmallInteger,
    String,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from services.database import DeclarativeTable, metadata
from services.fields import TIMESTAMPTZ, allowed, text_enum

MAX_POSITION = 2**63 - 1


def generation_of(position: str) -> str:
    """SQL for the generation of a position: two million positions that were taken one after the other.

    The index of an aggregate's ready rows begins with it. So new rows go into a small part of the index, whatever else
    is in it. Were it ordered by aggregate alone, each new row would go to some page of all: with ten million rows that
    wait, or as many dead ones that a snapshot keeps, it is read from disk first, and after each checkpoint it goes to
    the write-ahead log whole.
    """
    return f"({position} >> 21)"


GENERATION = generation_of("position")
"""The generation of an outbox row; the index is on just this expression."""


class Xid8(UserDefinedType[int]):
    """PostgreSQL's `xid8`: a 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"


class PgSnapshot(UserDefinedType[str]):
    """PostgreSQL's `pg_snapshot`: which transactions had ended at one moment."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "pg_snapshot"


# No identity column: before PostgreSQL 17 a partitioned table cannot have one.
EVENT_POSITIONS = Sequence("events_position_seq", metadata=metadata)


class EventRow(DeclarativeTable):
    """A fact, written once in the transaction that caused it.

    The log is partitioned by its UUIDv7 id, which is ordered by time: the id alone is the key, and old months leave by
    dropping a partition.
    """

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_position", "position"),
        Index("ix_events_transaction_id", "transaction_id"),
        {"postgresql_partition_by": "RANGE (id)"},
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(String(100))
    version: Mapped[int] = mapped_column(SmallInteger)
    aggregate: Mapped[str] = mapped_column(String(100))
    payload: Mapped[dict[str, Any]] = mapped_column(JSONB)
    occurred_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=func.now())
    # Neither these ids nor positions are commit order: a reader of the log asks whether each transaction had ended.
    transaction_id: Mapped[int] = mapped_column(Xid8, server_default=text("pg_current_xact_id()"))
    request_id: Mapped[str | None] = mapped_column(String(128))
    traceparent: Mapped[str | None] = mapped_column(String(128))
    # Taken when the event is written, under the locks that its transaction holds: what saw an event comes after it.
    position: Mapped[int] = mapped_column(BigInteger, server_default=EVENT_POSITIONS.next_value())


class LogConsumer(DeclarativeTable):
    """How far a reader of the log has come: it has read what `seen` shows.

    While it reads the events that `reading` shows and `seen` does not, those up to `position` are read too; `until` is
    the last of them.
    """

    __tablename__ = "log_consumers"
    __table_args__ = (CheckConstraint("(reading IS NULL) = (until IS NULL)", name="reading"),)

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    seen: Mapped[str] = mapped_column(PgSnapshot)
    reading: Mapped[str | None] = mapped_column(PgSnapshot)
    position: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    until: Mapped[int | None] = mapped_column(BigInteger)
    updated_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=func.now())


class Waits(StrEnum):
    """Why an outbox row is not simply ready."""

    asked = "asked"
    """Its writer deferred it. Later events of its aggregate do not wait for it."""
    retry = "retry"
    """It failed, or was replayed, and is tried again."""
    behind = "behind"
    """An earlier event of its aggregate waits or is a dead letter. Woken when that one is out of the way."""
    unknown = "unknown"
    """No worker that looked at it has a handler for its type and version."""


class OutboxRow(DeclarativeTable):
    """The note that an event has still to be processed; deleted in the transaction that processes it.

    A row is *ready* (`available_at` null) or it *waits* (until `available_at`, for the reason in `waits`). A ready row
    may start to wait; one that waits is never ready again, only due. So a claim may skip positions below which it has
    seen no ready row, and whose writers have all ended.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        Index("ix_outbox_ready", "type", "position", postgresql_where=text("available_at IS NULL")),
        Index(
            "ix_outbox_ready_aggregate",
            text(GENERATION),
            "aggregate",
            "position",
            postgresql_where=text("available_at IS NULL"),
        ),
        # Not of those that wait for ever: the planner would take it for a way to an aggregate's rows while the
        # statistics know of none that wait.
        Index(
            "ix_outbox_waiting",
            "type",
            "available_at",
            "position",
            postgresql_where=text("available_at < 'infinity'"),
        ),
        Index(
            "ix_outbox_waiting_aggregate",
            "aggregate",
            "position",
            postgresql_where=text("available_at IS NOT NULL"),
        ),
        CheckConstraint("attempts >= 0", name="attempts"),
        CheckConstraint(allowed("waits", Waits), name="waits"),
        CheckConstraint("(available_at IS NULL) = (waits IS NULL)", name="ready_or_waits"),
    )

    position: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    # No foreign key: the log is partitioned, and a partition is dropped only when nothing in it waits.
    event_id: Mapped[UUID]
    aggregate: Mapped[str] = mapped_column(String(100))
    type: Mapped[str] = mapped_column(String(100))
    available_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    waits: Mapped[Waits | None] = mapped_column(text_enum(Waits))
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    last_error: Mapped[str | None] = mapped_column(Text)
    # What failed so far, the oldest first: [{"at", "attempt", "error", "fingerprint"}, ...]
    failures: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)


class DeadLetter(DeclarativeTable):
    """An event whose attempts are used up, with everything that is known of why.

    Where it `blocks`, later events of its aggregate wait until it is replayed or discarded.
    """

    __tablename__ = "dead_letters"
    __table_args__ = (
        Index("ix_dead_letters_aggregate", "aggregate"),
        Index("ix_dead_letters_fingerprint", "fingerprint"),
        Index("ix_dead_letters_event_id", "event_id"),
    )

    # The outbox position it had: replayed there, it keeps its place before the aggregate's later events.
    position: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    event_id: Mapped[UUID]
    aggregate: Mapped[str] = mapped_column(String(100))
    type: Mapped[str] = mapped_column(String(100))
    attempts: Mapped[int] = mapped_column(SmallInteger)
    error: Mapped[str] = mapped_column(Text)
    fingerprint: Mapped[str] = mapped_column(String(16), server_default="")
    """Equal for errors of the same kind from the same place in the code, whatever their messages say."""
    failures: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))
    blocks: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    died_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=func.now())


class EventTypeControl(DeclarativeTable):
    """What operators said of one event type; every claim reads it, so it takes effect with the next batch."""

    __tablename__ = "outbox_types"
    __table_args__ = (CheckConstraint("max_batches > 0", name="max_batches"),)

    type: Mapped[str] = mapped_column(String(100), primary_key=True)
    paused: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    max_batches: Mapped[int | None] = mapped_column(Integer)
    """Transactions at most, of all workers together, that process events of this type at the same time."""
    changed_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=func.now())
    changed_by: Mapped[str] = mapped_column(String(200), server_default="")


class OutboxAction(DeclarativeTable):
    """What an operator did to events: replayed, discarded, cancelled, paused, resumed, limited. Append-only."""

    __tablename__ = "outbox_actions"
    __table_args__ = (Index("ix_outbox_actions_event_id", "event_id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=func.now())
    actor: Mapped[str] = mapped_column(String(200))
    action: Mapped[str] = mapped_column(String(32))
    type: Mapped[str] = mapped_column(String(100))
    event_id: Mapped[UUID | None]
    aggregate: Mapped[str | None] = mapped_column(String(100))
    reason: Mapped[str] = mapped_column(String(500), server_default="")
    detail: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))


class WorkerRow(DeclarativeTable):
    """One worker process, as it says of itself every few seconds; gone when it leaves in order."""

    __tablename__ = "workers"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    beat_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    progress_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    """When its poll loops last finished a look at the outbox, the slowest of them: it stands still when it hangs."""
    report: Mapped[dict[str, Any]] = mapped_column(JSONB)
    """What it runs: types, batches, events processed, failed and buried, rates, its last batch, its ARQ jobs."""
