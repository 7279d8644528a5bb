"""What operators see."""

from pydantic import BaseModel

from services.fields import Money
from services.orders.models import OrderStatus


class Books(BaseModel):
    """Whether credits and stock are counted right.

    `balanced` is true when both sums are zero and every count below is zero. Each count is a number of rows that
    contradict what the entries, transfers and orders say.
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
    """What waits in the outbox, and what failed for good. `oldest_due_seconds` is the longest overdue event's wait."""

    waiting: int
    retrying: int
    oldest_due_seconds: float
    dead_letters: int
    orders_by_status: dict[OrderStatus, int]
