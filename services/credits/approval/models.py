"""The table of movements that no one approved."""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Index, text
from sqlmodel import Field, SQLModel

from services.fields import CREDITS, TIMESTAMPTZ, now


class UnapprovedMovement(SQLModel, table=True):
    """A transfer that an operator made or resolved alone, outside the will of the accounts' owners.

    What an operator may still do alone follows from the sums of these rows. A trigger makes the table append-only.
    """

    __tablename__ = "unapproved_movements"
    __table_args__ = (
        CheckConstraint("amount > 0", name="amount"),
        *(
            Index(f"ix_unapproved_movements_{column}_created_at", column, "created_at")
            for column in ("operator_id", "debit_account_id", "credit_account_id")
        ),
    )

    transfer_id: UUID = Field(primary_key=True, foreign_key="transfers.id")
    operator_id: int = Field(foreign_key="users.id", sa_type=BigInteger)
    debit_account_id: int = Field(foreign_key="accounts.id", sa_type=BigInteger)
    credit_account_id: int = Field(foreign_key="accounts.id", sa_type=BigInteger)
    amount: Decimal = Field(sa_type=CREDITS)
    """What was posted, or released by a void."""
    created_at: datetime = Field(
        default_factory=now, sa_type=TIMESTAMPTZ, sa_column_kwargs={"server_default": text("clock_timestamp()")}
    )
    """Read under the locks of the operator and the accounts."""
