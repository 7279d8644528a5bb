"""Imports every table, so that migrations can compare them and relationships can be resolved by name."""

from services.audit.log.models import AuditLogHead, AuditLogRow
from services.audit.models import LedgerAudit
from services.canary.models import CanaryRow
from services.catalog.models import Category, Inventory, Product, StockMovement
from services.credits.approval.models import UnapprovedMovement
from services.credits.models import Account, Adjustment, Entry, Transfer
from services.database import metadata
from services.history.models import HistoryRow
from services.idempotency.models import IdempotencyKey
from services.jobs.models import JobRow
from services.orders.days.models import OrderDay
from services.orders.models import Order, OrderItem, OrderSeller, OrderTransition, Refund, RefundLine
from services.outbox.bulk.models import BulkAction
from services.outbox.models import (
    DeadLetter,
    EventRow,
    EventTypeControl,
    LogConsumer,
    LogOrigin,
    LogSink,
    OutboxAction,
    OutboxError,
    OutboxRow,
    WorkerRow,
)
from services.sweeps.models import SweepFailure
from services.users.attempts.models import FailedAttempts
from services.users.keys.models import ApiKey
from services.users.models import User
from services.users.registration.models import UnverifiedEmail
from services.users.resets.models import Mail, OneTimeToken
from services.users.roles.models import RoleRequest
from services.users.sessions.models import RefreshToken, UserSession
from services.users.totp.models import RecoveryCode, TotpSecret

__all__ = [
    "Account",
    "Adjustment",
    "ApiKey",
    "AuditLogHead",
    "AuditLogRow",
    "BulkAction",
    "CanaryRow",
    "Category",
    "DeadLetter",
    "Entry",
    "EventRow",
    "EventTypeControl",
    "FailedAttempts",
    "HistoryRow",
    "IdempotencyKey",
    "Inventory",
    "JobRow",
    "LedgerAudit",
    "LogConsumer",
    "LogOrigin",
    "LogSink",
    "Mail",
    "OneTimeToken",
    "Order",
    "OrderDay",
    "OrderItem",
    "OrderSeller",
    "OrderTransition",
    "OutboxAction",
    "OutboxError",
    "OutboxRow",
    "Product",
    "RecoveryCode",
    "RefreshToken",
    "Refund",
    "RefundLine",
    "RoleRequest",
    "StockMovement",
    "SweepFailure",
    "TotpSecret",
    "Transfer",
    "UnapprovedMovement",
    "UnverifiedEmail",
    "User",
    "UserSession",
    "WorkerRow",
    "metadata",
]
