"""The event log, the outbox and the dead letters."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
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
from services.fields import TIMESTAMPTZ


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


class OutboxRow(DeclarativeTable):
    """The note that an event has still to be processed; deleted in the transaction that processes it."""

    __tablename__ = "outbox"
    __table_args__ = (
        Index("ix_outbox_aggregate_position", "aggregate", "position"),
        CheckConstraint("attempts >= 0", name="attempts"),
    )

    position: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    # No foreign key: the log is partitioned, and a partition is dropped only when nothing in it waits.
    event_id: Mapped[UUID]
    aggregate: Mapped[str] = mapped_column(String(100))
    type: Mapped[str] = mapped_column(String(100))
    available_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=func.now())
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    last_error: Mapped[str | None] = mapped_column(Text)


class DeadLetter(DeclarativeTable):
    """An event whose attempts are used up. Later events of its aggregate wait until it is replayed."""

    __tablename__ = "dead_letters"
    __table_args__ = (Index("ix_dead_letters_aggregate", "aggregate"),)

    # The outbox position it had: replayed there, it keeps its place before the aggregate's later events.
    position: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    event_id: Mapped[UUID]
    aggregate: Mapped[str] = mapped_column(String(100))
    type: Mapped[str] = mapped_column(String(100))
    attempts: Mapped[int] = mapped_column(SmallInteger)
    error: Mapped[str] = mapped_column(Text)
    died_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=func.now())
