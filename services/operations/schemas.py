"""Response schemas for operators."""

from pydantic import BaseModel

from services.fields import Money
from services.orders.models import OrderStatus


class Books(BaseModel):
    """Whether the books and the stock balance.

    `balanced` is true if both sums and all counts are zero. Each count is the number of rows that contradict the
    entries, transfers and orders.
    """

    balanced: bool
    entries_sum: Money
    posted_sum: Money
    overdrawn_accounts: int
    miscounted_accounts: int
    negative_stock: int
    miscounted_stock: int
    mispaid_orders: int


class Backlog(BaseModel):
    """Waiting events, dead letters, and orders by status.

    `oldest_due_seconds` is how long the most overdue event has been due.
    """

    waiting: int
    retrying: int
    oldest_due_seconds: float
    dead_letters: int
    orders_by_status: dict[OrderStatus, int]
