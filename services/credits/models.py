"""Accounts, transfers and entries: double entry in the same database as the orders."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Optional
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Identity, Index, text
from sqlmodel import Field, Relationship, SQLModel

from services.fields import TIMESTAMPTZ, allowed, new_id, now, text_enum
from services.users.models import User

ISSUANCE = "issuance"
"""Name of the system account that top-ups come from; its balance is minus all credits ever issued."""


class TransferKind(StrEnum):
    """Why credits moved."""

    top_up = "top_up"
    transfer = "transfer"
    order = "order"
    refund = "refund"


class TransferState(StrEnum):
    """A pending transfer holds credits; it is posted or voided once."""

    pending = "pending"
    posted = "posted"
    voided = "voided"


class AccountBase(SQLModel):
    """The balance of an account. Available credits are `posted - held`."""

    posted: Decimal = Field(
        default=Decimal(0), max_digits=18, decimal_places=2, sa_column_kwargs={"server_default": text("0")}
    )
    held: Decimal = Field(
        default=Decimal(0), max_digits=18, decimal_places=2, sa_column_kwargs={"server_default": text("0")}
    )


class Account(AccountBase, table=True):
    """One per user, and system accounts with a name instead of a user."""

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint("(user_id IS NULL) <> (system_name IS NULL)", name="owner"),
        CheckConstraint("held >= 0", name="held"),
        CheckConstraint("posted - held >= 0 OR system_name IS NOT NULL", name="available"),
    )

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(),))
    user_id: int | None = Field(default=None, foreign_key="users.id", unique=True, sa_type=BigInteger)
    system_name: str | None = Field(default=None, max_length=32, unique=True)
    version: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    """Number of entries so far; the version of the newest one."""

    user: Optional["User"] = Relationship(back_populates="account", sa_relationship_kwargs={"lazy": "raise"})


class TransferBase(SQLModel):
    """An amount of credits on its way from one account to another."""

    amount: Decimal = Field(max_digits=18, decimal_places=2)


class Transfer(TransferBase, table=True):
    """One movement of credits, undone only by another transfer."""

    __tablename__ = "transfers"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount"),
        CheckConstraint("debit_account_id <> credit_account_id", name="accounts_differ"),
        CheckConstraint(allowed("kind", TransferKind), name="kind"),
        CheckConstraint(allowed("state", TransferState), name="state"),
        CheckConstraint("(state = 'pending') = (resolved_at IS NULL)", name="resolved"),
        Index("ix_transfers_order_id", "order_id", postgresql_where=text("order_id IS NOT NULL")),
    )

    id: UUID = Field(default_factory=new_id, primary_key=True)
    debit_account_id: int = Field(foreign_key="accounts.id", sa_type=BigInteger)
    credit_account_id: int = Field(foreign_key="accounts.id", sa_type=BigInteger)
    kind: TransferKind = Field(sa_type=text_enum(TransferKind))
    state: TransferState = Field(sa_type=text_enum(TransferState))
    order_id: UUID | None = Field(
        default=None,
        # Deferred: the credits are held before the order row is written, when its status is known.
        sa_column=Column(ForeignKey("orders.id", deferrable=True, initially="DEFERRED")),
    )
    note: str = Field(default="", max_length=200, sa_column_kwargs={"server_default": ""})
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )
    resolved_at: datetime | None = Field(default=None, sa_type=TIMESTAMPTZ)


class Entry(SQLModel, table=True):
    """One side of a posted transfer: a signed amount and the account's balance after it, numbered without gaps."""

    __tablename__ = "entries"
    __table_args__ = (
        CheckConstraint("amount <> 0", name="amount"),
        CheckConstraint("version > 0", name="version"),
    )

    account_id: int = Field(primary_key=True, foreign_key="accounts.id", sa_type=BigInteger)
    version: int = Field(primary_key=True, sa_type=BigInteger)
    transfer_id: UUID = Field(foreign_key="transfers.id")
    amount: Decimal = Field(max_digits=18, decimal_places=2)
    balance: Decimal = Field(max_digits=18, decimal_places=2)
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("now()")}
    )

    transfer: Transfer = Relationship(sa_relationship_kwargs={"lazy": "raise"})
