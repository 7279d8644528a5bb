"""What happens to credits."""

from decimal import Decimal
from typing import ClassVar
from uuid import UUID

from services.outbox.events import Event


class CreditsMoved(Event):
    """A transfer was posted. Amounts are credits with two decimals."""

    type: ClassVar[str] = "credits.moved"

    transfer_id: UUID
    kind: str
    from_account_id: int
    to_account_id: int
    amount: Decimal

    @property
    def aggregate(self) -> str:
        return f"transfer/{self.transfer_id}"
