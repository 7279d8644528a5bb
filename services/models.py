"""Every table in one import: what migrations compare with, and what resolves relationships by name."""

from services.audit.models import LedgerAudit
from services.catalog.models import Category, Inventory, Product
from services.credits.models import Account, Adjustment, Entry, Transfer
from services.database import metadata
from services.idempotency.models import IdempotencyKey
from services.orders.models import Order, OrderItem, OrderTransition, Refund, RefundLine
from services.outbox.models import DeadLetter, EventRow, OutboxRow
from services.users.models import User

__all__ = [
    "Account",
    "Adjustment",
    "Category",
    "DeadLetter",
    "Entry",
    "EventRow",
    "IdempotencyKey",
    "Inventory",
    "LedgerAudit",
    "Order",
    "OrderItem",
    "OrderTransition",
    "OutboxRow",
    "Product",
    "Refund",
    "RefundLine",
    "Transfer",
    "User",
    "metadata",
]
