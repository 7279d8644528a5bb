"""Request and response schemas for credits."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import Field, StrictBool, ValidationInfo, field_validator

from services.credits.models import (
    NOTED,
    AccountBase,
    AdjustmentBase,
    AdjustmentState,
    EntryBase,
    Operation,
    Reason,
    TransferBase,
    TransferKind,
    TransferState,
)
from services.fields import SOME_FAULTS, Amount, Instant, Money, RequestBody, Schema, StrictId
from services.users.schemas import UserSummary


class TopUpCreate(TransferBase, RequestBody):
    """Credits that an operator issues to a user."""

    user_id: StrictId


class _Transfer(TransferBase, RequestBody):
    to_user_id: StrictId


class TransferCreate(_Transfer):
    """A transfer from the caller to another user.

    A dry run reports what would happen if the recipient can receive credits, and writes nothing.
    """

    dry_run: StrictBool = False


class HoldCreate(_Transfer):
    """A hold of the caller's credits for another user, until `expires_at`."""

    expires_at: Instant


class HoldPost(RequestBody):
    """How much of a hold to post; all of it if omitted. The remainder is released."""

    amount: Amount | None = None


class ReversalCreate(RequestBody):
    """Why a transfer is reversed."""

    reason: Reason


class AdjustmentCreate(AdjustmentBase, RequestBody):
    """Credits that an operator gives to a user or, if negative, takes from them."""

    user_id: StrictId


class TransferItem(_Transfer):
    """One transfer of a batch. A linked one succeeds or fails together with the next."""

    linked: StrictBool = False


class BatchMode(StrEnum):
    """Whether the transfers of a batch succeed or fail independently or all together."""

    independent = "independent"
    atomic = "atomic"


class TransferBatchCreate(RequestBody):
    """Transfers from the caller, carried out one after another in the given order."""

    mode: BatchMode
    transfers: Annotated[list[TransferItem], Field(min_length=1, max_length=500), SOME_FAULTS]
    dry_run: StrictBool = False


class TransferPublic(TransferBase, Schema):
    """A movement of credits."""

    id: UUID
    kind: TransferKind
    state: TransferState
    created_at: datetime


class TransferDetail(TransferPublic):
    """A transfer with all its details. `from_user_id` or `to_user_id` is null if credits were issued or taken back.

    Once it is posted, `posted_amount` is what was moved; the rest of `amount` was released. `reverses` is the transfer
    that this one reverses, `reversed_by` the one that reverses this one. `note` is empty if it is for the staff only:
    the reason of a reversal or an adjustment, and that of a refund, which its order shows.
    """

    from_user_id: int | None
    to_user_id: int | None
    posted_amount: Money | None
    expires_at: datetime | None
    resolved_at: datetime | None
    order_id: UUID | None
    reverses: UUID | None
    reversed_by: UUID | None


class Party(StrEnum):
    """Which transfers are meant: those that the caller pays, or those that they receive."""

    payer = "payer"
    recipient = "recipient"


class TransferMade(TransferBase, Schema):
    """A transfer that took effect or, in a dry run, would take effect; `id` is null in a dry run."""

    id: UUID | None
    kind: TransferKind
    state: TransferState
    created_at: datetime


class TransferReply(TransferMade):
    """The result of a transfer."""

    dry_run: bool


class ItemError(Schema):
    """Why a transfer of a batch failed: the error that the same transfer would have had on its own."""

    code: str
    detail: str
    pointer: str


class ItemStatus(StrEnum):
    posted = "posted"
    failed = "failed"


class ItemResult(Schema):
    """The result of one transfer of a batch: `transfer` if it was posted, `error` if it failed."""

    status: ItemStatus
    transfer: TransferMade | None = None
    error: ItemError | None = None


class TransferBatchReply(Schema):
    """The results of the transfers, in the order of the request."""

    mode: BatchMode
    dry_run: bool
    posted: int
    failed: int
    results: list[ItemResult]


class AccountPublic(AccountBase, Schema):
    """A user's credits: all of them, those held for orders and other users, and those available to spend.

    A closed account can neither send nor receive.
    """

    available: Money


class AccountStatus(AccountPublic):
    """A user's account, as seen by operators."""

    user: UserSummary


class AdjustmentPublic(AdjustmentBase, Schema):
    """An adjustment of a user's balance. `transfer_id` is set once applied; `decided_by` is the second operator.

    `operation` says what is done: an adjustment, or a top-up or reversal that needs approval. `reverses` is the
    transfer that a reversal undoes.
    """

    id: UUID
    operation: Operation
    reverses: UUID | None
    user: UserSummary
    state: AdjustmentState
    needs_approval: bool
    requested_by: int
    decided_by: int | None
    transfer_id: UUID | None
    created_at: datetime
    decided_at: datetime | None


class TransferSummary(Schema):
    """The transfer that an entry belongs to. `note` is empty unless it is a transfer between users or a top-up."""

    id: UUID
    kind: TransferKind
    order_id: UUID | None
    note: str

    @field_validator("note")
    @classmethod
    def _for_the_user(cls, note: str, info: ValidationInfo) -> str:
        return note if info.data["kind"] in NOTED else ""


class EntryPublic(EntryBase, Schema):
    """One line of a statement: a signed amount and the balance after it. Versions have no gaps."""

    transfer: TransferSummary
