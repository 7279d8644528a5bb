"""The results of an audit."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from services.audit.models import LedgerAuditBase
from services.fields import Schema


class DifferenceKind(StrEnum):
    """The kinds of differences."""

    ledger_sum = "ledger_sum"
    entry_version = "entry_version"
    entry_balance = "entry_balance"
    entry_orphan = "entry_orphan"
    account_posted = "account_posted"
    account_held = "account_held"
    account_version = "account_version"
    account_overdrawn = "account_overdrawn"
    transfer_unbalanced = "transfer_unbalanced"
    transfer_entries = "transfer_entries"
    transfer_posting = "transfer_posting"
    transfer_order = "transfer_order"
    reversal = "reversal"
    adjustment = "adjustment"
    adjustment_orphan = "adjustment_orphan"
    unapproved_movement = "unapproved_movement"
    order_held = "order_held"
    order_paid = "order_paid"
    payee_held = "payee_held"
    payee_paid = "payee_paid"
    payee_refunded = "payee_refunded"
    order_refunded = "order_refunded"
    order_refunded_above_paid = "order_refunded_above_paid"
    order_total = "order_total"
    order_item_count = "order_item_count"
    order_returned = "order_returned"
    order_status = "order_status"
    order_history = "order_history"
    refund_amount = "refund_amount"
    refund_returned = "refund_returned"
    stock_reserved = "stock_reserved"
    stock_impossible = "stock_impossible"
    stock_moved = "stock_moved"
    stock_by_hand = "stock_by_hand"
    stock_moved_for_order = "stock_moved_for_order"
    event_missing = "event_missing"
    event_differs = "event_differs"
    outbox_event = "outbox_event"
    dead_letter_event = "dead_letter_event"
    order_event = "order_event"
    outbox_sleeper = "outbox_sleeper"
    acknowledged_order = "acknowledged_order"
    acknowledged_refund = "acknowledged_refund"
    acknowledged_transfer = "acknowledged_transfer"
    acknowledged_adjustment = "acknowledged_adjustment"
    acknowledged_unreadable = "acknowledged_unreadable"
    audit_log_removed = "audit_log_removed"
    audit_log_changed = "audit_log_changed"
    audit_log_cut = "audit_log_cut"
    audit_log_unsealed = "audit_log_unsealed"


_TOLD = "it was acknowledged to user {caller_id} by {method} {path} with the key {key}"

_MESSAGES: Mapping[DifferenceKind, str] = {
    DifferenceKind.ledger_sum: "all entries sum to {found}",
    DifferenceKind.entry_version: "the entry of account {account_id} after version {after} has version {found}",
    DifferenceKind.entry_balance: "entry {version} of account {account_id} has a balance of {found}, not {expected}",
    DifferenceKind.entry_orphan: "entry {version} of account {account_id} has no transfer: {transfer_id} is missing",
    DifferenceKind.account_posted: "account {account_id} has {found} posted, but its entries sum to {expected}",
    DifferenceKind.account_held: "account {account_id} has {found} held, but its pending transfers sum to {expected}",
    DifferenceKind.account_version: "account {account_id} is at version {found}, but has {expected} entries",
    DifferenceKind.account_overdrawn: "account {account_id} is overdrawn: {found} available",
    DifferenceKind.transfer_unbalanced: "the entries of transfer {transfer_id} do not sum to zero: {found}",
    DifferenceKind.transfer_entries: "the entries of transfer {transfer_id} do not match its state: {found}",
    DifferenceKind.transfer_posting: "transfer {transfer_id} has posted {found}",
    DifferenceKind.transfer_order: "transfer {transfer_id} belongs to an order that does not exist: {found}",
    DifferenceKind.reversal: "reversal {transfer_id} is not the opposite of transfer {reversed_id}",
    DifferenceKind.adjustment: "adjustment {adjustment_id} does not match transfer {transfer_id}",
    DifferenceKind.adjustment_orphan: "transfer {transfer_id} is an adjustment that no one requested",
    DifferenceKind.unapproved_movement: "what operator {operator_id} did alone, {found}, does not match transfer "
    "{transfer_id}: {expected}",
    DifferenceKind.order_held: "order {order_id} ({status}) has {found} held instead of {expected}",
    DifferenceKind.order_paid: "order {order_id} ({status}) was paid {found} instead of {expected}",
    DifferenceKind.payee_held: "order {order_id} holds {found} for account {account_id}, but its lines cost {expected}",
    DifferenceKind.payee_paid: "order {order_id} paid {found} to account {account_id}, but its lines cost {expected}",
    DifferenceKind.payee_refunded: "account {account_id} refunded {found} of order {order_id}, but its returned pieces "
    "cost {expected}",
    DifferenceKind.order_refunded: "order {order_id} has {found} refunded, but its refunds sum to {expected}",
    DifferenceKind.order_refunded_above_paid: "order {order_id} was refunded {found}, more than was paid",
    DifferenceKind.order_total: "order {order_id} has a total of {found}, but its lines sum to {expected}",
    DifferenceKind.order_item_count: "order {order_id} has an item count of {found}, but {expected} lines",
    DifferenceKind.order_returned: "order {order_id} has {found} refunded, but its returned pieces cost {expected}",
    DifferenceKind.order_status: "order {order_id} is {found}, but its last transition made it {expected}",
    DifferenceKind.order_history: "transition {transition_id} of order {order_id} starts from {found}, not {expected}",
    DifferenceKind.refund_amount: "refund {refund_id} of order {order_id} is {found}, but its pieces cost {expected}",
    DifferenceKind.refund_returned: "line {line} of order {order_id} has {found} returned, but its refunds {expected}",
    DifferenceKind.stock_reserved: "product {product_id} has {found} pieces reserved, but orders reserve {expected}",
    DifferenceKind.stock_impossible: "product {product_id} has impossible stock: {found}",
    DifferenceKind.stock_moved: "product {product_id} has {found} pieces on hand, but its movements sum to {expected}",
    DifferenceKind.stock_by_hand: "the pieces of product {product_id} on hand were changed by {found} outside Waybill",
    DifferenceKind.stock_moved_for_order: "the stock movements of product {product_id} for order {order_id} sum to "
    "{found}, but by its lines to {expected}",
    DifferenceKind.event_missing: "{aggregate} has no event {type}, but its rows tell of one: {expected}",
    DifferenceKind.event_differs: "event {event_id} ({type} of {aggregate}) says {found}, but the rows {expected}",
    DifferenceKind.outbox_event: "outbox row {position} does not match the event that it names: {found}",
    DifferenceKind.dead_letter_event: "dead letter {position} does not match the event that it names: {found}",
    DifferenceKind.order_event: "order {order_id} is pending, but no worker will process it: {found}",
    DifferenceKind.outbox_sleeper: "outbox row {position} of {aggregate} waits for an earlier event that is gone",
    DifferenceKind.acknowledged_order: "order {order_id}: the database has {found}; " + _TOLD,
    DifferenceKind.acknowledged_refund: "refund {refund_id}: the database has {found}; " + _TOLD,
    DifferenceKind.acknowledged_transfer: "transfer {transfer_id}: the database has {found}; " + _TOLD,
    DifferenceKind.acknowledged_adjustment: "adjustment {adjustment_id}: the database has {found}; " + _TOLD,
    DifferenceKind.acknowledged_unreadable: "the reply to {method} {path} of user {caller_id}, stored under the key "
    "{key}, does not say what it acknowledged: {found}",
    DifferenceKind.audit_log_removed: "rows of the audit log are missing: {found} follows where {expected} should be",
    DifferenceKind.audit_log_changed: "the audit log was changed at or before position {position}: the hash is {found}",
    DifferenceKind.audit_log_cut: "the audit log ends with {found}, but it was sealed up to {expected}",
    DifferenceKind.audit_log_unsealed: "rows of the audit log were not sealed in time: {found}",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """Two values that do not agree. `subject` has the ids of what they belong to, by name."""

    kind: DifferenceKind
    subject: Mapping[str, int | str]
    expected: str
    found: str

    @property
    def message(self) -> str:
        """One line for people."""
        return _MESSAGES[self.kind].format(**self.subject, expected=self.expected, found=self.found)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Difference":
        """Read a row of one of the audit's statements; its remaining columns are the subject."""
        subject = {
            name: str(value) if isinstance(value, UUID) else value
            for name, value in row.items()
            if name not in ("kind", "expected", "found") and value is not None
        }
        return cls(DifferenceKind(row["kind"]), subject, row["expected"] or "nothing", row["found"] or "nothing")

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind.value,
            "subject": dict(self.subject),
            "expected": self.expected,
            "found": self.found,
            "message": self.message,
        }


@dataclass(frozen=True, slots=True)
class AuditResult:
    """A finished audit. `seconds` is how long it took and held its snapshot."""

    started_at: datetime
    seconds: float
    rows_checked: int
    differences: int


class DifferencePublic(Schema):
    """Two values that do not agree. `subject` has the ids of what they belong to, by name."""

    kind: DifferenceKind
    subject: dict[str, int | str]
    expected: str
    found: str
    message: str


class LedgerAuditPublic(LedgerAuditBase, Schema):
    """A finished audit: how many differences it found, and the first few of each kind."""

    sample: list[DifferencePublic]
