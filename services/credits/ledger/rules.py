"""The central rule of credits: whether they may move. Pure functions on balances that were read before.

A refusal is the first of `PRECEDENCE` that applies. The hold of an order has the same rule in SQL, in its statement
(`HOLD` in queries.py); a test compares the two. Constraints and triggers of the ledger's tables have it as well:
`refused_by` gives the refusal that belongs to each of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from services.errors import (
    AccountClosed,
    AmountInvalid,
    DomainError,
    Fault,
    InsufficientCredits,
    SameAccount,
    TransferAlreadyReversed,
    TransferRefused,
    UnknownRecipient,
)
from services.fields import MAX_CREDITS

PRECEDENCE: tuple[type[DomainError], ...] = (
    SameAccount,
    AccountClosed,
    InsufficientCredits,
    UnknownRecipient,
    AmountInvalid,
)
"""Why credits may not move, the most important reason first. A closed payer comes before a closed payee.

What concerns only the payer comes before whether there is such a recipient. So no one finds out which users there are
by transfers that cannot take effect anyway; those that can, cost credits.

Between users, the last one cannot occur if the books balance: all users together have what was issued, and the
issuance account cannot issue more than `MAX_CREDITS`.
"""


@dataclass(slots=True)
class Balance:
    """An account as it was read, updated by postings in memory. Available credits are `posted - held`."""

    account_id: int
    user_id: int | None
    """None for a system account, which may go below zero."""
    posted: Decimal
    held: Decimal
    version: int
    is_closed: bool

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Balance":
        """The balance in a row with columns of these names; others are ignored."""
        return cls(row["account_id"], row["user_id"], row["posted"], row["held"], row["version"], row["is_closed"])


@dataclass(frozen=True, slots=True)
class Movement:
    """A transfer by its accounts' ids: `amount` credits from the debit account to the credit account."""

    transfer_id: UUID
    debit_account_id: int
    credit_account_id: int
    amount: Decimal
    order_id: UUID | None = None
    reverses: UUID | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A requested transfer, with the balances on both sides."""

    pointer: str
    """Where it is in the request; empty if it is not part of one."""
    debit: Balance
    credit: Balance | None
    """None if there is no such recipient or, between users, if the recipient's account is closed."""
    amount: Decimal
    note: str
    order_id: UUID | None = None
    reverses: UUID | None = None


@dataclass(frozen=True, slots=True)
class Posting:
    """A transfer that the balances allow, with the contents of its two entries."""

    transfer_id: UUID
    item: Item
    debit: Balance
    debit_version: int
    debit_balance: Decimal
    credit: Balance
    credit_version: int
    credit_balance: Decimal

    def movement(self) -> Movement:
        return Movement(self.transfer_id, self.debit.account_id, self.credit.account_id, self.item.amount)


def refusal(item: Item, paid: Decimal | None = None, received: Decimal | None = None) -> DomainError | None:
    """Why the balances do not allow this transfer now, the first of `PRECEDENCE`; None if they do.

    `paid` is the total that its payer pays, `received` the total that its payee receives. Both default to its amount.
    """
    debit, credit = item.debit, item.credit
    if credit is debit:
        return _same_account(item.pointer)
    if debit.is_closed:
        return closed(debit.user_id, _faults(item.pointer, "comes from a closed account"))
    if credit is not None and credit.is_closed:
        return closed(credit.user_id, _faults(item.pointer, "is closed", "/to_user_id"))
    paid = item.amount if paid is None else paid
    if not _covers(debit, paid):
        return _not_covered(paid, item.pointer)
    if credit is None:
        return _unknown_recipient(item.pointer)
    received = item.amount if received is None else received
    if credit.posted + received > MAX_CREDITS:
        return _too_much(item.pointer)
    return None


def anyone() -> Balance:
    """An account that stands for a recipient of whom nothing is known."""
    return Balance(0, 0, Decimal(0), Decimal(0), 0, is_closed=False)


def hold_refusal(buyer: Balance, total: Decimal) -> DomainError | None:
    """Why the buyer's balance does not allow a hold of this total; None if it does.

    It is what `joint_refusal` says of the holds if the sellers' accounts are open.
    """
    if buyer.is_closed:
        return closed(buyer.user_id)
    return None if _covers(buyer, total) else not_covered(total)


def hold(buyer: Balance, total: Decimal) -> None:
    """Apply a hold that is not refused to the balance."""
    buyer.held += total


def joint_refusal(items: Sequence[Item]) -> DomainError | None:
    """Why the balances do not allow these transfers together; None if they do.

    The first of `PRECEDENCE` that applies to any of them: a closed account of the last comes before too few credits for
    the first. Credits that one of them brings in do not pay for another.
    """
    paid: dict[int, Decimal] = {}
    received: dict[int, Decimal] = {}
    for item in items:
        paid[item.debit.account_id] = paid.get(item.debit.account_id, Decimal(0)) + item.amount
        if item.credit is not None:
            received[item.credit.account_id] = received.get(item.credit.account_id, Decimal(0)) + item.amount
    found = [
        refusal(item, paid[item.debit.account_id], received[item.credit.account_id] if item.credit else None)
        for item in items
    ]
    return min((error for error in found if error is not None), key=_place, default=None)


def refused_by(rule: str | None, amount: Decimal, pointer: str = "") -> DomainError:
    """The refusal of `amount` that belongs to a rule of the database: the name of a constraint or trigger, or "22003".

    `TransferRefused` for one that is not the ledger's. `pointer` is where the transfer is in the request.
    """
    return REFUSED_BY.get(rule or "", _not_allowed)(amount, pointer)


def closed(user_id: int | None, faults: Sequence[Fault] = ()) -> AccountClosed:
    """The error for a movement from or to a closed account of this user."""
    return AccountClosed(f"the account of user {user_id} is closed", faults)


def not_covered(amount: Decimal, faults: Sequence[Fault] = ()) -> InsufficientCredits:
    """The error for an amount that the payer does not have."""
    return InsufficientCredits(f"the available credits do not cover {amount}", faults)


def post(item: Item, transfer_id: UUID) -> Posting:
    """Apply a transfer that is not refused to the balances."""
    debit, credit = item.debit, item.credit
    assert credit is not None, "a transfer without a recipient is refused"
    _move(debit, credit, item.amount, 1)
    return Posting(transfer_id, item, debit, debit.version, debit.posted, credit, credit.version, credit.posted)


def undo(posting: Posting) -> None:
    """Restore the balances from before this posting, which must be the last one."""
    _move(posting.debit, posting.credit, -posting.item.amount, -1)


def _covers(debit: Balance, amount: Decimal) -> bool:
    return debit.user_id is None or debit.posted - debit.held >= amount


def _move(debit: Balance, credit: Balance, amount: Decimal, entries: int) -> None:
    debit.posted -= amount
    credit.posted += amount
    debit.version += entries
    credit.version += entries


def _place(error: DomainError) -> int:
    return PRECEDENCE.index(type(error))


def _faults(pointer: str, detail: str, field: str = "") -> Sequence[Fault]:
    return (Fault(detail, f"{pointer}{field}"),) if pointer else ()


def _unknown_recipient(pointer: str) -> UnknownRecipient:
    return UnknownRecipient(
        "there is no such recipient, or they cannot receive credits", _faults(pointer, "is unknown", "/to_user_id")
    )


def _same_account(pointer: str) -> SameAccount:
    faults = _faults(pointer, "is the sender", "/to_user_id")
    return SameAccount("credits cannot be moved to the account they come from", faults)


def _not_covered(amount: Decimal, pointer: str) -> InsufficientCredits:
    return not_covered(amount, _faults(pointer, "is not covered", "/amount"))


def _too_much(pointer: str) -> AmountInvalid:
    faults = _faults(pointer, "is more than the account can hold", "/amount")
    return AmountInvalid(f"an account holds at most {MAX_CREDITS}", faults)


def _closed_by_then(_: Decimal, pointer: str) -> AccountClosed:
    return AccountClosed("one of the accounts is closed", _faults(pointer, "involves a closed account"))


def _not_positive(amount: Decimal, pointer: str) -> AmountInvalid:
    return AmountInvalid(f"{amount} cannot be moved", _faults(pointer, "cannot be moved", "/amount"))


def _reversed_by_then(_: Decimal, pointer: str) -> TransferAlreadyReversed:
    return TransferAlreadyReversed("the transfer was already reversed", _faults(pointer, "was already reversed"))


def _not_allowed(_: Decimal, pointer: str) -> TransferRefused:
    return TransferRefused("the database does not allow this transfer", _faults(pointer, "is not allowed"))


REFUSALS = (*PRECEDENCE, TransferAlreadyReversed, TransferRefused)
"""Every kind of refusal of the ledger."""

REFUSED_BY: Mapping[str, Callable[[Decimal, str], DomainError]] = {
    "fk_transfers_credit_account_id_accounts": lambda _, pointer: _unknown_recipient(pointer),
    "ck_transfers_accounts_differ": lambda _, pointer: _same_account(pointer),
    "accounts_keep": _closed_by_then,
    "ck_accounts_closed": _closed_by_then,
    "ck_accounts_available": _not_covered,
    "ck_transfers_amount": _not_positive,
    "ck_transfers_posted_amount": _not_positive,
    # A balance beyond NUMERIC(18, 2). This alone limits what the issuance account issues.
    "22003": lambda _, pointer: _too_much(pointer),
    "uq_transfers_reverses": _reversed_by_then,
}
"""The refusal that belongs to each constraint and trigger of the ledger's tables, by its name."""
