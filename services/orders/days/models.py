"""Orders by day."""

from datetime import date
from decimal import Decimal

from sqlalchemy import BigInteger, CheckConstraint, Date, Numeric, String
from sqlalchemy.orm import Mapped, mapped_column

from services.database import DeclarativeTable


class OrderDay(DeclarativeTable):
    """How many events of one type about orders were made on one day (UTC), and their amounts in credits.

    It stays when the log drops the events.
    """

    __tablename__ = "order_days"
    __table_args__ = (
        CheckConstraint("orders > 0", name="orders"),
        CheckConstraint("amount >= 0", name="amount"),
    )

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    type: Mapped[str] = mapped_column(String(100), primary_key=True)
    orders: Mapped[int] = mapped_column(BigInteger)
    amount: Mapped[Decimal] = mapped_column(Numeric(18, 2))
