"""Accounts, transfers and entries: double entry in the same database as the orders."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Optional
from uuid import UUID

import pydantic
from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Identity, Index, PrimaryKeyConstraint, text
from sqlmodel import Field, Relationship, SQLModel

from services.acting import LONGEST_ACTOR
from services.fields import (
    CREDITS,
    TIMESTAMPTZ,
    Amount,
    Money,
    SignedAmount,
    Text,
    allowed,
    new_id,
    now,
    text_enum,
)
from services.users.models import User

Note = Annotated[Text, pydantic.Field(max_length=200)]
Reason = Annotated[Text, pydantic.Field(min_length=1, max_length=200, pattern=r"\S")]
"""Why an operator does something; must not be blank."""

ISSUANCE = "issuance"
"""The name of the system account that issues credits; its balance is minus the credits of all users together."""


class TransferKind(StrEnum):
    """Why credits moved."""

    top_up = "top_up"
    transfer = "transfer"
    order = "order"
    refund = "refund"
    reversal = "reversal"
    adjustment = "adjustment"


NOTED = frozenset({TransferKind.top_up, TransferKind.transfer})
"""The kinds whose note is written for those who read it. That of the others is a reason, which is the staff's or is
shown with its order."""


class TransferState(StrEnum):
    """A pending transfer holds credits until it is posted or voided, or expires."""

    pending = "pending"
    posted = "posted"
    voided = "voided"
    expired = "expired"


class AdjustmentState(StrEnum):
    """A pending adjustment waits for a second operator."""

    pending = "pending"
    applied = "applied"
    rejected = "rejected"


class Operation(StrEnum):
    """What an adjustment does when it is applied: the kind of its transfer."""

    adjustment = "adjustment"
    top_up = "top_up"
    """A top-up that needs approval."""
    reversal = "reversal"
    """A reversal that needs approval."""


class AccountBase(SQLModel):
    """The balance of an account. Available credits are `posted - held`."""

    posted: Money = Field(default=Decimal(0), sa_type=CREDITS, sa_column_kwargs={"server_default": text("0")})
    held: Money = Field(default=Decimal(0), sa_type=CREDITS, sa_column_kwargs={"server_default": text("0")})
    version: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    """Number of entries so far; the version of the newest one."""
    closed_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    """A closed account can neither send nor receive; a trigger prevents changes to its balance."""


class Account(AccountBase, table=True):
    """An account: one per user, and system accounts, which have a name instead of a user."""

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint("(user_id IS NULL) <> (system_name IS NULL)", name="owner"),
        CheckConstraint("held >= 0", name="held"),
        CheckConstraint("posted - held >= 0 OR system_name IS NOT NULL", name="available"),
        CheckConstraint("closed_at IS NULL OR held = 0 AND system_name IS NULL", name="closed"),
    )

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(),))
    user_id: int | None = Field(default=None, foreign_key="users.id", unique=True, sa_type=BigInteger)
    system_name: str | None = Field(default=None, max_length=32, unique=True)

    user: Optional["User"] = Relationship(sa_relationship_kwargs={"lazy": "raise"})


LISTED = {
    "listed": "order_id IS NULL",
    "holds": "order_id IS NULL AND expires_at IS NOT NULL",
}
"""Which transfers the indexes for the lists of transfers and of holds have."""


class TransferBase(SQLModel):
    """An amount of credits to move from one account to another."""

    amount: Amount = Field(sa_type=CREDITS)
    note: Note = Field(default="", sa_column_kwargs={"server_default": ""})


class Transfer(TransferBase, table=True):
    """A movement of credits; only another transfer can undo it. Triggers allow one change of a row: its resolution."""

    __tablename__ = "transfers"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount"),
        CheckConstraint("debit_account_id <> credit_account_id", name="accounts_differ"),
        CheckConstraint(allowed("kind", TransferKind), name="kind"),
        CheckConstraint(allowed("state", TransferState), name="state"),
        CheckConstraint("(state = 'pending') = (resolved_at IS NULL)", name="resolved"),
        CheckConstraint("(state = 'posted') = (posted_amount IS NOT NULL)", name="posted"),
        CheckConstraint("posted_amount > 0 AND posted_amount <= amount", name="posted_amount"),
        CheckConstraint("expires_at IS NOT NULL OR state <> ALL ('{pending,expired}'::text[])", name="expires"),
        CheckConstraint("(kind = 'reversal') = (reverses IS NOT NULL)", name="reversal"),
        Index("ix_transfers_order_id", "order_id", postgresql_where=text("order_id IS NOT NULL")),
        # Two sweeps read due holds, one those of orders and one those between users. With an index each, neither
        # reads the other's holds, and each continues where its last slice ended.
        Index(
            "ix_transfers_due_of_orders",
            "expires_at",
            "id",
            postgresql_where=text("state = 'pending' AND order_id IS NOT NULL"),
        ),
        Index(
            "ix_transfers_due_of_users",
            "expires_at",
            "id",
            postgresql_where=text("state = 'pending' AND order_id IS NULL"),
        ),
        # What each party lists. The transfers of orders are seen with these, and would cost each order more indexes.
        *(
            Index(f"ix_transfers_{name}_of_{side}", f"{side}_account_id", "id", postgresql_where=text(condition))
            for name, condition in LISTED.items()
            for side in ("debit", "credit")
        ),
        Index("uq_transfers_reverses", "reverses", unique=True, postgresql_where=text("reverses IS NOT NULL")),
    )

    id: UUID = Field(default_factory=new_id, primary_key=True)
    debit_account_id: int = Field(foreign_key="accounts.id", sa_type=BigInteger)
    credit_account_id: int = Field(foreign_key="accounts.id", sa_type=BigInteger)
    kind: TransferKind = Field(sa_type=text_enum(TransferKind))
    state: TransferState = Field(sa_type=text_enum(TransferState))
    posted_amount: Decimal | None = Field(default=None, max_digits=18, decimal_places=2)
    """The part of the amount that was posted; the remainder was released."""
    order_id: UUID | None = Field(
        default=None,
        # Deferred: the credits are held before the order row is written, because that decides its status.
        sa_column=Column(ForeignKey("orders.id", deferrable=True, initially="DEFERRED")),
    )
    reverses: UUID | None = Field(default=None, foreign_key="transfers.id")
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    expires_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)
    """From this time, a pending transfer can no longer be posted."""
    actor: str | None = Field(default=None, max_length=LONGEST_ACTOR)
    """Who made it (`services/acting.py`); None in rows of releases that did not record it.

    Who posted, voided or expired a pending transfer is in the event of that, or in the transition of its order.
    """
    resolved_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)


class EntryBase(SQLModel):
    """One side of a posted transfer: a signed amount and the account's balance after it, numbered without gaps."""

    version: int = Field(primary_key=True, sa_type=BigInteger)
    amount: Money = Field(sa_type=CREDITS)
    balance: Money = Field(sa_type=CREDITS)
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("clock_timestamp()")}
    )


class Entry(EntryBase, table=True):
    """One side of a posted transfer: a signed amount and the account's balance after it, numbered without gaps.

    A trigger makes the table append-only. `created_at` is read under the account's lock, so it grows with the version.
    """

    __tablename__ = "entries"
    __table_args__ = (
        PrimaryKeyConstraint("account_id", "version"),
        CheckConstraint("amount <> 0", name="amount"),
        CheckConstraint("version > 0", name="version"),
        Index("ix_entries_account_id_created_at", "account_id", "created_at"),
    )

    account_id: int = Field(primary_key=True, foreign_key="accounts.id", sa_type=BigInteger)
    transfer_id: UUID = Field(foreign_key="transfers.id")

    transfer: Transfer = Relationship(sa_relationship_kwargs={"lazy": "raise"})


class AdjustmentBase(SQLModel):
    """A correction of a balance: credits given (positive) or taken (negative)."""

    amount: SignedAmount = Field(sa_type=CREDITS)
    reason: Reason


class Adjustment(AdjustmentBase, table=True):
    """An adjustment, or a top-up or reversal beyond what one operator may do alone: a second one must approve it.

    A trigger compares the transfer that applies it with `operation` and `reverses`.
    """

    __tablename__ = "adjustments"
    __table_args__ = (
        CheckConstraint("amount <> 0", name="amount"),
        CheckConstraint("length(reason) > 0", name="reason"),
        CheckConstraint(allowed("state", AdjustmentState), name="state"),
        CheckConstraint(allowed("operation", Operation), name="operation"),
        CheckConstraint("(operation = 'reversal') = (reverses IS NOT NULL)", name="reverses"),
        CheckConstraint("decided_by <> requested_by", name="second_operator"),
        CheckConstraint(
            "CASE state WHEN 'pending' THEN decided_by IS NULL WHEN 'rejected' THEN decided_by IS NOT NULL"
            " ELSE needs_approval = (decided_by IS NOT NULL) END",
            name="decided_by",
        ),
        CheckConstraint("(state = 'pending') = (decided_at IS NULL)", name="decided"),
        CheckConstraint("(state = 'applied') = (transfer_id IS NOT NULL)", name="applied"),
        *(Index(f"ix_adjustments_{column}_id", column, "id") for column in ("account_id", "requested_by", "state")),
    )

    id: UUID = Field(default_factory=new_id, primary_key=True)
    account_id: int = Field(foreign_key="accounts.id", sa_type=BigInteger)
    operation: Operation = Field(
        default=Operation.adjustment,
        sa_type=text_enum(Operation),
        sa_column_kwargs={"server_default": Operation.adjustment.value},
    )
    reverses: UUID | None = Field(default=None, foreign_key="transfers.id")
    """The transfer that a reversal undoes. Its recipient's account is `account_id`."""
    state: AdjustmentState = Field(sa_type=text_enum(AdjustmentState))
    needs_approval: bool
    requested_by: int = Field(foreign_key="users.id", sa_type=BigInteger)
    decided_by: int | None = Field(default=None, foreign_key="users.id", sa_type=BigInteger)
    """The second operator; None while pending or if none was needed."""
    transfer_id: UUID | None = Field(default=None, foreign_key="transfers.id", unique=True)
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    decided_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)

    account: Account = Relationship(sa_relationship_kwargs={"lazy": "raise"})
