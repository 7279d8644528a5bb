"""What comes in and goes out about credits."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from services.credits.models import TransferKind, TransferState
from services.fields import Money, Price, StrictId, Text

Note = Annotated[Text, Field(max_length=200)]


class TopUpCreate(BaseModel):
    """Credits that an operator issues to a user."""

    model_config = ConfigDict(extra="forbid")

    user_id: StrictId
    amount: Price
    note: Note = ""


class TransferCreate(BaseModel):
    """Credits from the caller to another user."""

    model_config = ConfigDict(extra="forbid")

    to_user_id: StrictId
    amount: Price
    note: Note = ""


class TransferPublic(BaseModel):
    """A movement of credits."""

    id: UUID
    kind: TransferKind
    state: TransferState
    amount: Money
    note: str
    created_at: datetime


class AccountPublic(BaseModel):
    """The caller's credits: all of them, those held for orders, and what is free to spend."""

    posted: Money
    held: Money
    available: Money
    version: int


class TransferSummary(BaseModel):
    """Why an entry was made."""

    id: UUID
    kind: TransferKind
    order_id: UUID | None
    note: str


class EntryPublic(BaseModel):
    """One line of a statement: a signed amount and the balance after it. Versions count up without a gap."""

    version: int
    amount: Money
    balance: Money
    created_at: datetime
    transfer: TransferSummary
