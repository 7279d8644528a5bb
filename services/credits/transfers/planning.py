"""What transfers come to when they are carried out one after another, computed in memory on locked balances.

Chains are TigerBeetle's linked events (https://docs.tigerbeetle.com, "Linked Events"): an item that is `linked` stands
or falls with the next one. An atomic batch is one chain.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias
from uuid import UUID

from services.errors import (
    AccountClosed,
    AmountInvalid,
    DomainError,
    Fault,
    InsufficientCredits,
    LinkedChainOpen,
    LinkedFailed,
    SameAccount,
    UnknownRecipient,
)
from services.fields import MAX_CREDITS, new_id


@dataclass(slots=True)
class Balance:
    """An account as the plan finds it and moves it on. Available credits are `posted - held`."""

    account_id: int
    posted: Decimal
    held: Decimal
    version: int
    is_closed: bool


@dataclass(frozen=True, slots=True)
class Item:
    """One transfer as it was asked for. `pointer` is where it stands in the request."""

    pointer: str
    debit: Balance
    credit: Balance | None
    """None where there is no such recipient."""
    amount: Decimal
    note: str


@dataclass(frozen=True, slots=True)
class Chain:
    """Items that succeed or fail together. An open one ends with an item that is linked to nothing: it fails."""

    items: Sequence[Item]
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Posting:
    """A transfer that the balances allow, with what both of its entries say."""

    transfer_id: UUID
    item: Item
    debit: Balance
    debit_version: int
    debit_balance: Decimal
    credit: Balance
    credit_version: int
    credit_balance: Decimal


Outcome: TypeAlias = Posting | DomainError


def chains(items: Sequence[Item], linked: Sequence[bool]) -> list[Chain]:
    """Group items, each of which says whether it is linked to the next one."""
    found: list[Chain] = []
    chain: list[Item] = []
    for item, goes_on in zip(items, linked, strict=True):
        chain.append(item)
        if not goes_on:
            found.append(Chain(chain))
            chain = []
    if chain:
        found.append(Chain(chain, is_open=True))
    return found


def carry_out(wanted: Iterable[Chain]) -> list[Outcome]:
    """The outcome of each item, in order, as if one chain after the other was carried out; moves the balances on."""
    return [outcome for chain in wanted for outcome in _carry_out(chain)]


def take_back(outcomes: Iterable[Outcome]) -> None:
    """Put the balances back to where they were before these outcomes, which must be the last ones."""
    for outcome in outcomes:
        if isinstance(outcome, Posting):
            _move(outcome.debit, outcome.credit, -outcome.item.amount, -1)


def broken(chain: Chain, failed: int, error: DomainError) -> list[Outcome]:
    """The outcomes of a chain whose item number `failed` has failed: it keeps its error, the others get theirs."""
    outcomes: list[Outcome] = [
        LinkedFailed(f"{chain.items[failed].pointer}, which it is linked with, failed", [Fault("failed", item.pointer)])
        for item in chain.items
    ]
    if chain.is_open:
        outcomes[-1] = _chain_open(chain)
    outcomes[failed] = error
    return outcomes


def cause(outcomes: Iterable[Outcome]) -> DomainError | None:
    """What a chain failed with: the error of the item that none of the others is to blame for."""
    errors = (outcome for outcome in outcomes if isinstance(outcome, DomainError))
    return next((error for error in errors if not isinstance(error, LinkedFailed)), None)


def refusal(item: Item) -> DomainError | None:
    """Why the balances do not allow this transfer now; None where they do."""
    debit, credit = item.debit, item.credit
    if credit is None:
        return UnknownRecipient("there is no such recipient", [Fault("is unknown", f"{item.pointer}/to_user_id")])
    if credit is debit:
        return SameAccount(
            "credits cannot be moved to the account they come from", [Fault("is you", f"{item.pointer}/to_user_id")]
        )
    if debit.is_closed:
        return AccountClosed("your account is closed", [Fault("comes from a closed account", item.pointer)])
    if credit.is_closed:
        return AccountClosed("the recipient's account is closed", [Fault("is closed", f"{item.pointer}/to_user_id")])
    if debit.posted - debit.held < item.amount:
        return InsufficientCredits(
            f"the available credits do not cover {item.amount}", [Fault("is not covered", f"{item.pointer}/amount")]
        )
    if credit.posted + item.amount > MAX_CREDITS:
        return AmountInvalid(
            f"an account holds at most {MAX_CREDITS}",
            [Fault("is more than the account can hold", f"{item.pointer}/amount")],
        )
    return None


def _carry_out(chain: Chain) -> list[Outcome]:
    postings: list[Outcome] = []
    for number, item in enumerate(chain.items):
        ends_open = chain.is_open and number == len(chain.items) - 1
        error = _chain_open(chain) if ends_open else refusal(item)
        if error is not None:
            take_back(postings)
            return broken(chain, number, error)
        postings.append(_post(item))
    return postings


def _chain_open(chain: Chain) -> LinkedChainOpen:
    pointer = chain.items[-1].pointer
    return LinkedChainOpen(
        "the last item is linked to one that does not come", [Fault("ends open", f"{pointer}/linked")]
    )


def _post(item: Item) -> Posting:
    debit, credit = item.debit, item.credit
    assert credit is not None
    _move(debit, credit, item.amount, 1)
    return Posting(new_id(), item, debit, debit.version, debit.posted, credit, credit.version, credit.posted)


def _move(debit: Balance, credit: Balance, amount: Decimal, entries: int) -> None:
    debit.posted -= amount
    credit.posted += amount
    debit.version += entries
    credit.version += entries
