"""Transfers carried out the naive way, one after another, each savepoint a copy of everything."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from services.fields import MAX_CREDITS

UNKNOWN = -1
"""The number of an account that does not exist."""

POISON = "poison"
"""A note that a constraint of the database refuses."""


@dataclass(frozen=True)
class Wanted:
    """One transfer between accounts, by their numbers."""

    debit: int
    credit: int
    amount: Decimal
    linked: bool
    note: str = ""


@dataclass
class Bank:
    """Balances and entries (signed amount and balance after) by account."""

    posted: list[Decimal]
    held: list[Decimal]
    closed: list[bool]
    entries: list[list[tuple[Decimal, Decimal]]] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = [[] for _ in self.posted]

    def transfer(self, one: Wanted) -> str:
        """`posted`, or the code of the refusal. An unknown recipient is paid by the payer all the same."""
        if one.debit == one.credit:
            return "same_account"
        if self.closed[one.debit]:
            return "account_closed"
        if self.posted[one.debit] - self.held[one.debit] < one.amount:
            return "insufficient_credits"
        if one.credit == UNKNOWN or self.closed[one.credit]:
            self.posted[one.debit] -= one.amount
            return "unknown_recipient"
        if self.posted[one.credit] + one.amount > MAX_CREDITS:
            return "amount_invalid"
        for account, amount in ((one.debit, -one.amount), (one.credit, one.amount)):
            self.posted[account] += amount
            self.entries[account].append((amount, self.posted[account]))
        return "posted"


def naively(bank: Bank, batch: Sequence[Wanted]) -> tuple[Bank, list[str]]:
    """The bank afterwards and each outcome, by TigerBeetle's rules.

    The first failure breaks its chain, but an unknown recipient does so only if nothing else fails. A chain that the
    end of the batch cuts off is open. The database is only asked about chains that the balances allow.
    """
    told: list[str] = []
    start = 0
    while start < len(batch):
        end = start
        while end < len(batch) and batch[end].linked:
            end += 1
        is_open = end == len(batch)
        chain = batch[start : end + 1]
        savepoint = copy.deepcopy(bank)
        failed: tuple[int, str] | None = None
        for number, one in enumerate(chain):
            code = "linked_chain_open" if is_open and number == len(chain) - 1 else bank.transfer(one)
            if code not in ("posted", "unknown_recipient"):
                failed = number, code
                break
            if code != "posted" and failed is None:
                failed = number, code
        poisoned = [number for number, one in enumerate(chain) if one.note == POISON]
        if poisoned and failed is None:
            failed = poisoned[0], "transfer_refused"
        codes = ["posted" if failed is None else "linked_failed"] * len(chain)
        if failed is not None:
            bank = savepoint
            codes[-1] = "linked_chain_open" if is_open else codes[-1]
            codes[failed[0]] = failed[1]
        told += codes
        start = end + 1
    return bank, told


def as_one_chain(batch: Sequence[Wanted]) -> list[Wanted]:
    """An atomic batch: every transfer but the last is linked to the next."""
    return [Wanted(one.debit, one.credit, one.amount, True, one.note) for one in batch[:-1]] + list(batch[-1:])
