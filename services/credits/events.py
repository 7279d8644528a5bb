"""Events about credits."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, ClassVar
from uuid import UUID

from pydantic import Field

from services.outbox.events import PERSONAL, Event


class TransferEvent(Event):
    """A fact about one transfer."""

    transfer_id: UUID = Field(description="The transfer.")

    @property
    def aggregate(self) -> str:
        return f"transfer/{self.transfer_id}"


class CreditsMoved(TransferEvent):
    """A transfer was posted, immediately or after a hold. The part of a hold that was not posted is released.

    Not recorded for payments and refunds of orders (kinds `order` and `refund`): that would cost the worker one event
    for each seller. `order.confirmed` and `order.refunded` have the sum; the transfers, which name their order, show
    who paid whom.
    """

    type: ClassVar[str] = "credits.moved"

    kind: str = Field(description="Why the credits moved: top_up, transfer, reversal or adjustment.")
    from_account_id: int = Field(description="The account that pays.")
    to_account_id: int = Field(description="The account that is paid.")
    amount: Decimal = Field(description="The posted amount, in credits; possibly only part of a hold.")


class CreditsHeld(TransferEvent):
    """A user's credits are held for another user."""

    type: ClassVar[str] = "credits.held"

    from_account_id: int = Field(description="The account that pays.")
    to_account_id: int = Field(description="The account that is paid.")
    amount: Decimal = Field(description="The amount, in credits.")
    expires_at: datetime = Field(description="When the hold expires unless it is posted or voided first.")


class CreditsReleased(TransferEvent):
    """A hold between users was voided or expired. Its credits are released."""

    type: ClassVar[str] = "credits.released"

    from_account_id: int = Field(description="The account that pays.")
    to_account_id: int = Field(description="The account that is paid.")
    amount: Decimal = Field(description="The amount, in credits.")
    state: str = Field(description="How the hold ended: voided or expired.")


class TransferReversed(TransferEvent):
    """An operator reversed a transfer with another transfer."""

    type: ClassVar[str] = "transfer.reversed"

    reversal_id: UUID = Field(description="The transfer that reverses it.")
    reason: Annotated[str, PERSONAL] = Field(description="The reason, in words.")


class AdjustmentEvent(Event):
    """A fact about one adjustment."""

    adjustment_id: UUID = Field(description="The adjustment.")
    account_id: int = Field(description="The account.")
    amount: Decimal = Field(description="The signed change of the balance, in credits.")

    @property
    def aggregate(self) -> str:
        return f"adjustment/{self.adjustment_id}"


class AdjustmentRequested(AdjustmentEvent):
    """An operator requested an adjustment that a second operator must approve."""

    type: ClassVar[str] = "adjustment.requested"

    reason: Annotated[str, PERSONAL] = Field(description="The reason, in words.")


class AdjustmentApplied(AdjustmentEvent):
    """The adjustment took effect through a transfer."""

    type: ClassVar[str] = "adjustment.applied"

    reason: Annotated[str, PERSONAL] = Field(description="The reason, in words.")
    transfer_id: UUID = Field(description="The transfer that moved the credits.")


class AdjustmentRejected(AdjustmentEvent):
    """A second operator rejected the adjustment."""

    type: ClassVar[str] = "adjustment.rejected"


class AccountEvent(Event):
    """A fact about one account."""

    account_id: int = Field(description="The account.")

    @property
    def aggregate(self) -> str:
        return f"account/{self.account_id}"


class AccountClosed(AccountEvent):
    """The account was closed: it can neither send nor receive. Its balance stays."""

    type: ClassVar[str] = "account.closed"


class AccountReopened(AccountEvent):
    """The account was reopened: it can send and receive again."""

    type: ClassVar[str] = "account.reopened"
