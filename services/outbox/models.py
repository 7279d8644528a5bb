"""The event log, the outbox, the dead letters, and what operators set and do."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
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
from sqlmodel import Field, SQLModel

from services.acting import LONGEST_ACTOR
from services.database import DeclarativeTable, metadata
from services.fields import TIMESTAMPTZ, allowed, text_enum

MAX_POSITION = 2**63 - 1


def generation_of(position: str) -> str:
    """SQL for the generation of a position: a run of two million consecutive positions.

    It is the first column of the index on an aggregate's ready rows, so new rows go into a small part of that index,
    however large it is. If the index started with the aggregate, a new row could go to any of its pages. With ten
    million waiting rows, or as many dead ones that a snapshot keeps, that page must first be read from disk, and its
    first change after each checkpoint writes the whole page to the write-ahead log.
    """
    return f"({position} >> 21)"


GENERATION = generation_of("position")
"""The generation of an outbox row; the index uses exactly this expression."""


class Xid8(UserDefinedType[int]):
    """PostgreSQL's `xid8`: a 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"


NOTHING_SEEN = "1:1:"
"""A snapshot in which no transaction has ended yet."""


class PgSnapshot(UserDefinedType[str]):
    """PostgreSQL's `pg_snapshot`: which transactions had ended at one moment."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "pg_snapshot"


# No identity column: before PostgreSQL 17 a partitioned table cannot have one.
EVENT_POSITIONS = Sequence("events_position_seq", metadata=metadata)


class EventRow(DeclarativeTable):
    """A fact, written once in the transaction that caused it.

    The log is partitioned by its UUIDv7 id, which is ordered by time: the id alone is the key, and old months are
    removed by dropping a partition.
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
    # Neither these ids nor positions follow the commit order: a reader of the log checks whether each transaction had
    # ended.
    transaction_id: Mapped[int] = mapped_column(Xid8, server_default=text("pg_current_xact_id()"))
    request_id: Mapped[str | None] = mapped_column(String(128))
    traceparent: Mapped[str | None] = mapped_column(String(128))
    # Taken when the event is written, under the locks that its transaction holds: an event written by a transaction
    # that saw another event comes after that one.
    position: Mapped[int] = mapped_column(BigInteger, server_default=EVENT_POSITIONS.next_value())
    # Who did it (`services/acting.py`); null in events of releases that did not record it.
    actor: Mapped[str | None] = mapped_column(String(LONGEST_ACTOR))


class LogConsumer(DeclarativeTable):
    """How far a reader of the log has come: it has read the events that are visible in `seen`.

    While it is reading the events that are visible in `reading` but not in `seen`, it has also read those up to
    `position`; `until` is the position of the last one.

    A worker that runs the consumer has a lease. It commits only if the row still has its id and its token, so a worker
    that has lost the lease cannot commit any more.
    """

    __tablename__ = "log_consumers"
    __table_args__ = (
        CheckConstraint("(reading IS NULL) = (until IS NULL)", name="reading"),
        CheckConstraint("(lease_owner IS NULL) = (lease_until IS NULL)", name="lease"),
        CheckConstraint("(paused_at IS NULL) = (paused_by IS NULL)", name="paused"),
        CheckConstraint("failed_in_a_row >= 0", name="failed_in_a_row"),
    )

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    seen: Mapped[str] = mapped_column(PgSnapshot)
    reading: Mapped[str | None] = mapped_column(PgSnapshot)
    position: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    until: Mapped[int | None] = mapped_column(BigInteger)
    updated_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=func.now())

    lease_token: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Grows with each lease; 0 if no worker has ever run the consumer."""
    lease_owner: Mapped[UUID | None]
    """The id of a worker."""
    lease_until: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    failed_in_a_row: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    """How often the next event has failed; 0 after a success."""
    error: Mapped[str | None] = mapped_column(Text)
    retry_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    paused_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    paused_by: Mapped[str | None] = mapped_column(String(200))


class LogSink(SQLModel, table=True):
    """What was handed out to a log consumer whose place is kept in another database, together with its effects.

    Its row in `log_consumers` follows that place: it never says more than the other database has committed. `reads`
    and `stored` tell whether one of the two databases was restored to an earlier state (`services/outbox/sink.py`).
    """

    __tablename__ = "log_sinks"
    __table_args__ = (
        CheckConstraint("stored >= 0 AND stored <= reads", name="stored"),
        CheckConstraint("(dropped_transaction_id IS NULL) = (dropped_position IS NULL)", name="dropped"),
    )

    name: str = Field(max_length=100, foreign_key="log_consumers.name", ondelete="CASCADE", primary_key=True)
    series: UUID = Field(default=None, sa_column_kwargs={"server_default": text("gen_random_uuid()")})
    """Changes when the consumer starts over: what the other database has read of another series is not continued."""
    reads: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    """The number of the last read that was handed out."""
    last_read: UUID | None = None
    """Its id. After a failover that lost a read, another one may have its number."""
    stored: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    """The number of the read that the place in `log_consumers` comes after."""
    dropped_transaction_id: int | None = Field(default=None, sa_type=Xid8)
    """The highest transaction id of an event that retention has dropped since the series began."""
    dropped_position: int | None = Field(default=None, sa_type=BigInteger)
    """The highest position of such an event."""


class LogOrigin(SQLModel, table=True):
    """The cluster to which the stored transaction ids belong: those of `events` and `log_consumers`."""

    __tablename__ = "log_origin"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    id: int = Field(primary_key=True, sa_type=SmallInteger, sa_column_kwargs={"autoincrement": False})
    system_identifier: int | None = Field(default=None, sa_type=BigInteger)
    """PostgreSQL's identifier of the cluster; None if the role may not read it."""
    noted_at: datetime = Field(default=None, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": func.now()})


class Waits(StrEnum):
    """Why an outbox row waits."""

    asked = "asked"
    """Its writer deferred it. Later events of its aggregate do not wait for it."""
    retry = "retry"
    """It failed or was replayed, and will be tried again."""
    behind = "behind"
    """An earlier event of its aggregate waits or is a dead letter. Woken when that one is out of the way."""
    begun = "begun"
    """An attempt was noted before it began, and has not ended. If it is due, the process that tried it was killed."""
    unknown = "unknown"
    """No live worker has a handler for its type and version."""


ASKED = "waits = 'asked'"
"""The rows of deferred events. As a text: a statement with a parameter would not match the indexes."""


class OutboxRow(DeclarativeTable):
    """An event that is still to be processed. The row is deleted in the transaction that processes the event.

    A row is *ready* (`available_at` null) or it *waits* (until `available_at`, for the reason in `waits`). A ready row
    may start to wait; a waiting row never becomes ready again, only due. So a claim may skip the positions below a
    point if it has seen no ready row there and the transactions that took those positions have all ended.
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
        # Without the rows that wait forever: as long as the statistics show no waiting rows, the planner would use this
        # index to find an aggregate's rows.
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
        # What waits until another event is out of the way, for counts by type.
        Index("ix_outbox_behind", "type", "position", postgresql_where=text("available_at = 'infinity'")),
        # The list of deferred events. Other events have no entry here.
        Index("ix_outbox_asked", "position", postgresql_where=text(ASKED)),
        Index("ix_outbox_asked_type", "type", "position", postgresql_where=text(ASKED)),
        Index("ix_outbox_asked_available_at", "available_at", "position", postgresql_where=text(ASKED)),
        CheckConstraint("attempts >= 0", name="attempts"),
        CheckConstraint(allowed("waits", Waits), name="waits"),
        CheckConstraint("(available_at IS NULL) = (waits IS NULL)", name="ready_or_waits"),
    )

    position: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    # No foreign key: the log is partitioned, and a partition is dropped only when none of its events is waiting.
    event_id: Mapped[UUID]
    aggregate: Mapped[str] = mapped_column(String(100))
    type: Mapped[str] = mapped_column(String(100))
    # The event's version: a worker leaves alone what is newer than it knows. Null in rows that the release before wrote
    # when it replayed a dead letter: their version is only in the log.
    version: Mapped[int | None] = mapped_column(SmallInteger)
    available_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    waits: Mapped[Waits | None] = mapped_column(text_enum(Waits))
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    last_error: Mapped[str | None] = mapped_column(Text)
    # The failures so far, oldest first: [{"at", "attempt", "error", "fingerprint"}, ...]
    failures: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)


class FailureReason(StrEnum):
    """Why an attempt failed, or why an event is a dead letter."""

    handler_error = "handler_error"
    """The handler raised, or the database refused what it wrote."""
    time_limit = "time_limit"
    """The handler did not finish in time."""
    unreadable = "unreadable"
    """The payload is not valid, or the handler said that no retry can help."""
    unknown_version = "unknown_version"
    """No worker knows the event's type or version."""
    worker_died = "worker_died"
    """The event killed the process that tried it."""
    bisected = "bisected"
    """Its transaction was lost each time, and trying fewer and fewer events at a time found the one to blame."""
    locked = "locked"
    """Another transaction had locked what the event needs; no attempt is counted."""
    buried = "buried"
    """An operator buried it before it had failed."""


class DeadLetterBase(SQLModel):
    """An event whose attempts are used up."""

    # The outbox position it had. A replay puts it back there, before the aggregate's later events.
    position: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    event_id: UUID
    aggregate: str = Field(max_length=100)
    type: str = Field(max_length=100)
    attempts: int = Field(sa_type=SmallInteger)
    error: str = Field(sa_type=Text)
    reason: FailureReason | None = Field(default=None, sa_type=text_enum(FailureReason))
    """Null in rows that a release wrote that did not record it."""
    died_at: datetime = Field(default=None, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": func.now()})


class DeadLetter(DeadLetterBase, table=True):
    """An event whose attempts are used up, with everything that is known about why.

    If it `blocks`, later events of its aggregate wait until it is replayed or discarded.
    """

    __tablename__ = "dead_letters"
    __table_args__ = (
        Index("ix_dead_letters_aggregate_position", "aggregate", "position"),
        Index("ix_dead_letters_fingerprint_position", "fingerprint", "position"),
        # The groups: when the first and the last one died, and how many in each span of time.
        Index("ix_dead_letters_fingerprint_died_at", "fingerprint", "died_at"),
        Index("ix_dead_letters_reason_position", "reason", "position"),
        Index("ix_dead_letters_type_position", "type", "position"),
        Index("ix_dead_letters_event_id", "event_id"),
        # A claim checks for each aggregate whether a dead letter blocks it, without reading those that do not.
        Index("ix_dead_letters_blocking", "aggregate", "position", postgresql_where=text("blocks")),
        CheckConstraint(allowed("reason", FailureReason), name="reason"),
    )

    fingerprint: str = Field(default="", max_length=16, sa_column_kwargs={"server_default": ""})
    """The same for errors of the same kind from the same place in the code; see `services.outbox.summary`."""
    failures: list[dict[str, Any]] = Field(
        default_factory=list, sa_type=JSONB, sa_column_kwargs={"server_default": text("'[]'")}
    )
    blocks: bool = Field(default=True, sa_column_kwargs={"server_default": text("true")})


class EventTypeControl(SQLModel, table=True):
    """The operators' settings for one event type. Every claim reads them, so they take effect with the next batch."""

    __tablename__ = "outbox_types"
    __table_args__ = (CheckConstraint("max_batches > 0", name="max_batches"),)

    type: str = Field(max_length=100, primary_key=True)
    paused: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    max_batches: int | None = None
    """The maximum number of transactions, across all workers, that process events of this type at the same time."""
    changed_at: datetime = Field(default=None, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": func.now()})
    changed_by: str = Field(default="", max_length=200, sa_column_kwargs={"server_default": ""})


class OutboxError(SQLModel, table=True):
    """One full error of each kind. Rows of `outbox_actions` refer to it by its fingerprint."""

    __tablename__ = "outbox_errors"

    fingerprint: str = Field(max_length=16, primary_key=True)
    error: str = Field(sa_type=Text)
    kept_at: datetime = Field(default=None, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": func.now()})


class OutboxAction(SQLModel, table=True):
    """What an operator did to events, event types and consumers of the log. Append-only."""

    __tablename__ = "outbox_actions"
    __table_args__ = (Index("ix_outbox_actions_event_id", "event_id"),)

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(),))
    at: datetime = Field(default=None, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": func.now()})
    actor: str = Field(max_length=200)
    action: str = Field(max_length=32)
    type: str = Field(max_length=100)
    event_id: UUID | None = None
    aggregate: str | None = Field(default=None, max_length=100)
    reason: str = Field(default="", max_length=500, sa_column_kwargs={"server_default": ""})
    detail: dict[str, Any] = Field(
        default_factory=dict, sa_type=JSONB, sa_column_kwargs={"server_default": text("'{}'")}
    )


class WorkerWish(StrEnum):
    """What an operator asked of a worker; without a wish, it works."""

    quiet = "quiet"
    """Finish what has begun, and take nothing new: no events, no jobs, no bulk actions, no consumers."""
    stop = "stop"
    """Shut down, as after SIGTERM."""


class WorkerRow(SQLModel, table=True):
    """One worker process, as it reports itself every few seconds. The row is deleted on an orderly shutdown."""

    __tablename__ = "workers"
    __table_args__ = (CheckConstraint(allowed("asked", WorkerWish), name="asked"),)

    id: UUID = Field(primary_key=True)
    host: str = Field(max_length=255)
    pid: int
    started_at: datetime = Field(sa_type=TIMESTAMPTZ)
    beat_at: datetime = Field(sa_type=TIMESTAMPTZ)
    progress_at: datetime = Field(sa_type=TIMESTAMPTZ)
    """When the slowest of its poll loops last finished a look at the outbox. It stops advancing if one hangs."""
    report: dict[str, Any] = Field(sa_type=JSONB)
    """What it does: types, batches, events processed, failed and buried, rates, its last batch, its ARQ jobs."""
    asked: WorkerWish | None = Field(default=None, sa_type=text_enum(WorkerWish))
    """Read at each heartbeat. It ends with the process: its successor has a row of its own."""
    asked_by: str | None = Field(default=None, max_length=200)
