"""Every table in one import: what migrations compare with, and what resolves relationships by name."""

from services.catalog.models import Category, Inventory, Product
from services.credits.models import Account, Entry, Transfer
from services.database import metadata
from services.idempotency.models import IdempotencyKey
from services.orders.models import Order, OrderItem, OrderTransition
from services.outbox.models import DeadLetter, EventRow, EventTypeControl, OutboxAction, OutboxRow, WorkerRow
from services.users.models import User

__all__ = [
    "Account",
    "Category",
    "DeadLetter",
    "Entry",
    "EventRow",
    "EventTypeControl",
    "IdempotencyKey",
    "Inventory",
    "Order",
    "OrderItem",
    "OrderTransition",
    "OutboxAction",
    "OutboxRow",
    "Product",
    "Transfer",
    "User",
    "WorkerRow",
    "metadata",
]
