"""Orders by day."""

from datetime import date
from decimal import Decimal

from sqlalchemy import BigInteger, CheckConstraint
from sqlmodel import Field, SQLModel

from services.fields import CREDITS


class OrderDay(SQLModel, table=True):
    """How many events of one type about orders were made on one day (UTC), and their amounts in credits.

    It stays when the log drops the events.
    """

    __tablename__ = "order_days"
    __table_args__ = (
        CheckConstraint("orders > 0", name="orders"),
        CheckConstraint("amount >= 0", name="amount"),
    )

    day: date = Field(primary_key=True)
    type: str = Field(max_length=100, primary_key=True)
    orders: int = Field(sa_type=BigInteger)
    amount: Decimal = Field(sa_type=CREDITS)
