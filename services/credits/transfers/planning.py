"""Computes the outcomes of transfers that are carried out one after another, in memory, on locked balances.

Chains are TigerBeetle's linked events (https://docs.tigerbeetle.com, "Linked Events"): a `linked` item succeeds or
fails together with the next one. An atomic batch is one chain.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from services.credits.ledger.rules import Item, Posting, anyone, post, refusal, undo
from services.errors import DomainError, Fault, LinkedChainOpen, LinkedFailed, UnknownRecipient
from services.fields import new_id


@dataclass(frozen=True, slots=True)
class Chain:
    """Items that succeed or fail together. An open chain fails: its last item is linked, but there is no next one."""

    items: Sequence[Item]
    is_open: bool = False


Outcome: TypeAlias = Posting | DomainError


def chains(items: Sequence[Item], linked: Sequence[bool]) -> list[Chain]:
    """Group items into chains; `linked` has for each whether it is linked to the next one."""
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
    """The outcome of each item, with the chains carried out in order; updates the balances."""
    return [outcome for chain in wanted for outcome in _carry_out(chain)]


def take_back(outcomes: Iterable[Outcome]) -> None:
    """Restore the balances from before these outcomes, which must be the last ones."""
    for outcome in outcomes:
        if isinstance(outcome, Posting):
            undo(outcome)


def broken(chain: Chain, failed: int, error: DomainError) -> list[Outcome]:
    """The outcomes of a chain whose item number `failed` has failed with `error`: the others fail because of it."""
    outcomes: list[Outcome] = [
        LinkedFailed(f"the linked transfer {chain.items[failed].pointer} failed", [Fault("failed", item.pointer)])
        for item in chain.items
    ]
    if chain.is_open:
        outcomes[-1] = _chain_open(chain)
    outcomes[failed] = error
    return outcomes


def cause(outcomes: Iterable[Outcome]) -> DomainError | None:
    """The error that made a chain fail: the one that was not caused by another item."""
    errors = (outcome for outcome in outcomes if isinstance(outcome, DomainError))
    return next((error for error in errors if not isinstance(error, LinkedFailed)), None)


def _carry_out(chain: Chain) -> list[Outcome]:
    """The outcomes of a chain. An unknown recipient is what it fails because of only if nothing else is: otherwise, a
    chain that is certain to fail would reveal which users exist."""
    postings: list[Outcome] = []
    unknown: tuple[int, UnknownRecipient] | None = None
    for number, item in enumerate(chain.items):
        ends_open = chain.is_open and number == len(chain.items) - 1
        error = _chain_open(chain) if ends_open else refusal(item)
        if isinstance(error, UnknownRecipient):
            unknown = unknown or (number, error)
            postings.append(post(replace(item, credit=anyone()), new_id()))
        elif error is not None:
            take_back(postings)
            return broken(chain, number, error)
        else:
            postings.append(post(item, new_id()))
    if unknown is None:
        return postings
    take_back(postings)
    return broken(chain, *unknown)


def _chain_open(chain: Chain) -> LinkedChainOpen:
    pointer = chain.items[-1].pointer
    return LinkedChainOpen(
        "the last transfer is linked, but there is no next one", [Fault("must be false", f"{pointer}/linked")]
    )
