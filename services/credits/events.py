"""What happens to credits."""

from datetime import datetime
from decimal import Decimal
from typing import ClassVar
from uuid import UUID

from pydantic import Field

from services.outbox.events import Event


class TransferEvent(Event):
    """A fact about one transfer."""

    transfer_id: UUID = Field(description="The transfer.")

    @property
    def aggregate(self) -> str:
        return f"transfer/{self.transfer_id}"


class CreditsMoved(TransferEvent):
    """A transfer was posted, at once or after it was held; of a hold, what is not posted is free again.

    Not recorded for what an order pays its sellers and what they refund (kinds `order` and `refund`): that would cost
    the worker one event for each seller. `order.confirmed` and `order.refunded` tell the sum; the transfers, which name
    their order, tell who paid whom.
    """

    type: ClassVar[str] = "credits.moved"

    kind: str = Field(description="Why the credits moved: top_up, transfer, reversal or adjustment.")
    from_account_id: int = Field(description="The account that pays.")
    to_account_id: int = Field(description="The account that is paid.")
    amount: Decimal = Field(description="What was posted, in credits; for a hold, possibly only part of it.")


class CreditsHeld(TransferEvent):
    """A user has set credits aside for another."""

    type: ClassVar[str] = "credits.held"

    from_account_id: int = Field(description="The account that pays.")
    to_account_id: int = Field(description="The account that is paid.")
    amount: Decimal = Field(description="The amount, in credits.")
    expires_at: datetime = Field(description="When the hold expires unless it is posted or voided before.")


class CreditsReleased(TransferEvent):
    """A hold between users was voided, or expired. The credits are free again."""

    type: ClassVar[str] = "credits.released"

    from_account_id: int = Field(description="The account that pays.")
    to_account_id: int = Field(description="The account that is paid.")
    amount: Decimal = Field(description="The amount, in credits.")
    state: str = Field(description="How the hold ended: voided or expired.")


class TransferReversed(TransferEvent):
    """An operator has undone a transfer by another one."""

    type: ClassVar[str] = "transfer.reversed"

    reversal_id: UUID = Field(description="The transfer that undoes it.")
    reason: str = Field(description="The reason, in words.")


class AdjustmentEvent(Event):
    """A fact about one adjustment."""

    adjustment_id: UUID = Field(description="The adjustment.")
    account_id: int = Field(description="The account.")
    amount: Decimal = Field(description="The change of the balance: signed, in credits.")

    @property
    def aggregate(self) -> str:
        return f"adjustment/{self.adjustment_id}"


class AdjustmentRequested(AdjustmentEvent):
    """An operator has asked for an adjustment that a second one must approve."""

    type: ClassVar[str] = "adjustment.requested"

    reason: str = Field(description="The reason, in words.")


class AdjustmentApplied(AdjustmentEvent):
    """The adjustment has taken effect, by a transfer."""

    type: ClassVar[str] = "adjustment.applied"

    reason: str = Field(description="The reason, in words.")
    transfer_id: UUID = Field(description="The transfer that moved the credits.")


class AdjustmentRejected(AdjustmentEvent):
    """A second operator has refused the adjustment."""

    type: ClassVar[str] = "adjustment.rejected"


class AccountEvent(Event):
    """A fact about one account."""

    account_id: int = Field(description="The account.")

    @property
    def aggregate(self) -> str:
        return f"account/{self.account_id}"


class AccountClosed(AccountEvent):
    """The account neither sends nor receives; its balance stays."""

    type: ClassVar[str] = "account.closed"


class AccountReopened(AccountEvent):
    """The account sends and receives again."""

    type: ClassVar[str] = "account.reopened"
