"""Every table in one import: what migrations compare with, and what resolves relationships by name."""

from services.catalog.models import Category, Inventory, Product
from services.credits.models import Account, Entry, Transfer
from services.database import metadata
from services.idempotency.models import IdempotencyKey
from services.orders.models import Order, OrderItem, OrderTransition
from services.outbox.models import DeadLetter, EventRow, LogConsumer, OutboxRow
from services.users.models import User

__all__ = [
    "Account",
    "Category",
    "DeadLetter",
    "Entry",
    "EventRow",
    "IdempotencyKey",
    "Inventory",
    "LogConsumer",
    "Order",
    "OrderItem",
    "OrderTransition",
    "OutboxRow",
    "Product",
    "Transfer",
    "User",
    "metadata",
]
