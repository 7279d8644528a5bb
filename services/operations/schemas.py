"""Response schemas for operators."""

from services.fields import Money, Schema
from services.orders.models import OrderStatus
from services.totals import Precision


class Books(Schema):
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


class Backlog(Schema):
    """Waiting events, dead letters, and orders by status.

    Counts of events stop at 10,000; `waiting_is_more`, `retrying_is_more` and `dead_letters_is_more` say that there are
    more. `oldest_due_seconds` is how long the most overdue event has been due. It leaves out events that wait for a
    worker that knows their type, for a time in the future, or behind a dead letter or another event that waits, and
    events of a paused type. Up to 10,000 orders are counted; if there are more, `orders_precision` is `estimate`, and
    `orders_by_status` is what the database's statistics say.
    """

    waiting: int
    waiting_is_more: bool
    retrying: int
    retrying_is_more: bool
    oldest_due_seconds: float
    dead_letters: int
    dead_letters_is_more: bool
    orders_by_status: dict[OrderStatus, int]
    orders_precision: Precision
