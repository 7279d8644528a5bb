"""What happens to credits."""

from datetime import datetime
from decimal import Decimal
from typing import ClassVar
from uuid import UUID

from services.outbox.events import Event


class TransferEvent(Event):
    """A fact about one transfer. Amounts are credits with two decimals."""

    transfer_id: UUID

    @property
    def aggregate(self) -> str:
        return f"transfer/{self.transfer_id}"


class CreditsMoved(TransferEvent):
    """A transfer was posted, at once or after it was held; of a hold, what is not posted is free again."""

    type: ClassVar[str] = "credits.moved"

    kind: str
    from_account_id: int
    to_account_id: int
    amount: Decimal


class CreditsHeld(TransferEvent):
    """A user has set credits aside for another."""

    type: ClassVar[str] = "credits.held"

    from_account_id: int
    to_account_id: int
    amount: Decimal
    expires_at: datetime


class CreditsReleased(TransferEvent):
    """A hold between users was voided, or expired: `state`. The credits are free again."""

    type: ClassVar[str] = "credits.released"

    from_account_id: int
    to_account_id: int
    amount: Decimal
    state: str


class TransferReversed(TransferEvent):
    """An operator has undone a transfer by another one."""

    type: ClassVar[str] = "transfer.reversed"

    reversal_id: UUID
    reason: str


class AdjustmentEvent(Event):
    """A fact about one adjustment. The amount is signed, in credits with two decimals."""

    adjustment_id: UUID
    account_id: int
    amount: Decimal

    @property
    def aggregate(self) -> str:
        return f"adjustment/{self.adjustment_id}"


class AdjustmentRequested(AdjustmentEvent):
    """An operator has asked for an adjustment that a second one must approve."""

    type: ClassVar[str] = "adjustment.requested"

    reason: str


class AdjustmentApplied(AdjustmentEvent):
    """The adjustment has taken effect, by a transfer."""

    type: ClassVar[str] = "adjustment.applied"

    reason: str
    transfer_id: UUID


class AdjustmentRejected(AdjustmentEvent):
    """A second operator has refused the adjustment."""

    type: ClassVar[str] = "adjustment.rejected"


class AccountEvent(Event):
    """A fact about one account."""

    account_id: int

    @property
    def aggregate(self) -> str:
        return f"account/{self.account_id}"


class AccountClosed(AccountEvent):
    """The account neither sends nor receives; its balance stays."""

    type: ClassVar[str] = "account.closed"


class AccountReopened(AccountEvent):
    """The account sends and receives again."""

    type: ClassVar[str] = "account.reopened"
