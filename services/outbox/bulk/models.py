"""The row of a bulk action: what is to be done to which events, and how far it has come."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Index, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from services.acting import LONGEST_ACTOR
from services.fields import TIMESTAMPTZ, allowed, new_id, one_of, text_enum
from services.totals import Precision

_ACTIVE = ("waiting", "running")


class BulkKind(StrEnum):
    """What is done to each event. The first two are about dead letters, the others about events that wait."""

    replay = "replay"
    """Put dead letters back in their old places, due now."""
    discard = "discard"
    """Delete dead letters; what waits behind them continues."""
    retry_now = "retry_now"
    """Make events due that wait for their next attempt."""
    bury = "bury"
    """Turn events that wait into dead letters."""

    @property
    def of_letters(self) -> bool:
        """Whether it is about dead letters."""
        return self in (BulkKind.replay, BulkKind.discard)


class BulkState(StrEnum):
    """It waits for its first chunk, runs, or has ended."""

    waiting = "waiting"
    running = "running"
    finished = "finished"
    cancelled = "cancelled"

    @property
    def is_active(self) -> bool:
        """Whether there is something left to do."""
        return self.value in _ACTIVE


class BulkActionBase(SQLModel):
    """One action on all events that matched a filter when it was started.

    `filter` has the fields that are set. `estimate` is how many events matched at the start; `precision` says whether
    that is exact. `examined` events were looked at so far: of those that match, `done` were dealt with, `failed` were
    refused by the database or by what a discard does, and `skipped` were processed or changed meanwhile. `error` is the
    latest one; while `tries` is not 0, the next chunk has failed so often, and is tried again at `retry_at`.
    """

    id: UUID = Field(default_factory=new_id, primary_key=True)
    action: BulkKind = Field(sa_type=text_enum(BulkKind))
    filter: dict[str, Any] = Field(default_factory=dict, sa_type=JSONB)
    reason: str = Field(max_length=500)
    actor: str = Field(max_length=200)
    state: BulkState = Field(default=BulkState.waiting, sa_type=text_enum(BulkState))
    estimate: int = Field(sa_type=BigInteger)
    precision: Precision = Field(sa_type=text_enum(Precision))
    examined: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    done: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    failed: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    skipped: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    error: str | None = Field(default=None, sa_type=Text)
    tries: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    retry_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    created_at: datetime = Field(
        default=None, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("statement_timestamp()")}
    )
    started_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    touched_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    """When its latest chunk was committed or failed."""
    ended_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    cancelled_by: str | None = Field(default=None, max_length=200)
    cancel_reason: str | None = Field(default=None, max_length=500)


class BulkAction(BulkActionBase, table=True):
    """A bulk action, and the place from which its next chunk continues.

    The transaction of a chunk locks the row, deals with the events, and moves the place and the counters. So an event
    is dealt with once, whenever a worker is killed, and two workers never run the same action at the same time.

    The place only moves forward, up to a bound that is fixed at the start, and events that died later are left out: the
    action ends, even if what it replays fails again.
    """

    __tablename__ = "bulk_actions"
    __table_args__ = (
        CheckConstraint(allowed("action", BulkKind), name="action"),
        CheckConstraint(allowed("state", BulkState), name="state"),
        CheckConstraint(allowed("precision", Precision), name="precision"),
        CheckConstraint("btrim(reason) <> ''", name="reason"),
        CheckConstraint("done >= 0 AND failed >= 0 AND skipped >= 0", name="counted"),
        CheckConstraint("done + failed + skipped <= examined", name="examined"),
        CheckConstraint(f"({one_of('state', _ACTIVE)}) = (ended_at IS NULL)", name="ended"),
        CheckConstraint("(state = 'cancelled') = (cancelled_by IS NOT NULL)", name="cancelled"),
        Index(
            "ix_bulk_actions_active",
            text("coalesce(touched_at, created_at)"),
            "id",
            postgresql_where=text(one_of("state", _ACTIVE)),
        ),
        Index("ix_bulk_actions_action_id", "action", "id"),
        Index("ix_bulk_actions_state_id", "state", "id"),
    )

    acting: str | None = Field(default=None, max_length=LONGEST_ACTOR)
    """Who acts, as rows and events record it (`services/acting.py`); `actor` is what operators are shown."""
    user_id: int | None = Field(default=None, sa_type=BigInteger)
    """The user behind it. No foreign key, as in the audit log."""
    after_position: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    """The position of the last event that was examined."""
    after_aggregate: str = Field(default="", max_length=100, sa_column_kwargs={"server_default": ""})
    """Its aggregate; used for waiting events, whose index is by aggregate."""
    last_position: int = Field(sa_type=BigInteger)
    """The highest position that the action reaches."""
    last_aggregate: str = Field(default="", max_length=100, sa_column_kwargs={"server_default": ""})
    """The last aggregate with a waiting event when the action was started."""
    worker_id: UUID | None = None
    """The worker that ran its latest chunk."""
