"""What comes in and goes out about credits."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from services.credits.models import TransferKind, TransferState
from services.fields import Amount, Money, StrictId, Text

Note = Annotated[Text, Field(max_length=200)]


class TopUpCreate(BaseModel):
    """Credits that an operator issues to a user."""

    model_config = ConfigDict(extra="forbid")

    user_id: StrictId
    amount: Amount
    note: Note = ""


class _Transfer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    to_user_id: StrictId
    amount: Amount
    note: Note = ""


class TransferCreate(_Transfer):
    """Credits from the caller to another user. A dry run tells what would happen, and writes nothing."""

    dry_run: StrictBool = False


class TransferItem(_Transfer):
    """One transfer of a batch. A linked one succeeds or fails together with the next."""

    linked: StrictBool = False


class BatchMode(StrEnum):
    """Whether the transfers of a batch stand for themselves or for each other."""

    independent = "independent"
    atomic = "atomic"


class TransferBatchCreate(BaseModel):
    """Transfers from the caller, carried out one after another in the given order."""

    model_config = ConfigDict(extra="forbid")

    mode: BatchMode
    transfers: Annotated[list[TransferItem], Field(min_length=1, max_length=500)]
    dry_run: StrictBool = False


class TransferPublic(BaseModel):
    """A movement of credits."""

    id: UUID
    kind: TransferKind
    state: TransferState
    amount: Money
    note: str
    created_at: datetime


class TransferMade(BaseModel):
    """A transfer that took effect, or in a dry run would; it has no id then."""

    id: UUID | None
    kind: TransferKind
    state: TransferState
    amount: Money
    note: str
    created_at: datetime


class TransferReply(TransferMade):
    """What became of a transfer."""

    dry_run: bool


class ItemError(BaseModel):
    """Why a transfer of a batch failed: what the same transfer alone would have been refused with."""

    code: str
    detail: str
    pointer: str


class ItemStatus(StrEnum):
    posted = "posted"
    failed = "failed"


class ItemResult(BaseModel):
    """What became of one transfer of a batch: `transfer` where it is posted, `error` where it failed."""

    status: ItemStatus
    transfer: TransferMade | None = None
    error: ItemError | None = None


class TransferBatchReply(BaseModel):
    """What became of each transfer, in the order they were sent."""

    mode: BatchMode
    dry_run: bool
    posted: int
    failed: int
    results: list[ItemResult]


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
