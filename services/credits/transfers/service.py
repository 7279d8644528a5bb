"""Transfers between users, one or many in a request.

Many are first carried out in memory, on locked balances, and then written together: `docs/decisions/` explains why that
is the same as a savepoint for each, and where savepoints remain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from services.credits.ledger.rules import Item, Posting
from services.credits.ledger.service import record_moved, refused
from services.credits.models import NOTED, TransferKind
from services.credits.schemas import (
    BatchMode,
    Party,
    TransferBatchCreate,
    TransferCreate,
    TransferDetail,
    TransferItem,
)
from services.credits.transfers import planning
from services.credits.transfers.planning import Chain, Outcome
from services.credits.transfers.repository import Parties, TransferLine, TransferRow
from services.errors import BatchRefused, DomainError, NotFound
from services.groups import Asked, Busy
from services.query import Page, PageQuery
from services.sql import Read, objects_to_rows
from services.transaction import SAVEPOINT_BUDGET
from services.unit_of_work import UnitOfWork
from services.users.models import Caller
from services.users.rights import Scope


@dataclass(frozen=True, slots=True)
class Transferred:
    """The outcome of each transfer, in the order of the request, and the time of all."""

    outcomes: Sequence[Outcome]
    at: datetime


async def transfer(uow: UnitOfWork, sender: Caller, wanted: TransferCreate) -> Transferred:
    """Move the sender's credits to another user; a dry run only reports what would happen if they can receive them.

    Raises `InsufficientCredits`, `AccountClosed`, `SameAccount`, `UnknownRecipient`, `AmountInvalid` or
    `TransferRefused`. The unit of work is then as it was before, and can continue.
    """
    parties = await _parties(uow, sender, [wanted.to_user_id], wanted.dry_run)
    chain = Chain([_item(parties, wanted, "#")])
    [outcome] = planning.carry_out([chain]) if wanted.dry_run else await _Writer(uow).carry_out([chain])
    if isinstance(outcome, DomainError):
        raise outcome
    if not wanted.dry_run:
        record_moved(uow, outcome.movement(), TransferKind.transfer)
    return Transferred([outcome], parties.at)


async def transfer_batch(uow: UnitOfWork, sender: Caller, wanted: TransferBatchCreate) -> Transferred:
    """Carry out transfers one after another; a chain of linked ones, or an atomic batch, is all or nothing.

    Raises `BatchRefused`, and writes nothing, if the database refuses too many of them to find out which.
    """
    parties = await _parties(uow, sender, [one.to_user_id for one in wanted.transfers], wanted.dry_run)
    items = [_item(parties, one, f"#/transfers/{index}") for index, one in enumerate(wanted.transfers)]
    linked = [one.linked for one in wanted.transfers]
    if wanted.mode is BatchMode.atomic:
        linked[:-1] = [True] * (len(linked) - 1)
    chains = planning.chains(items, linked)
    if wanted.dry_run:
        return Transferred(planning.carry_out(chains), parties.at)
    outcomes = await _Writer(uow).carry_out(chains)
    for outcome in outcomes:
        if isinstance(outcome, Posting):
            record_moved(uow, outcome.movement(), TransferKind.transfer)
    return Transferred(outcomes, parties.at)


def reads(uow: UnitOfWork, wanted: Sequence[tuple[int, TransferCreate]]) -> list[Read[Any]]:
    """What has to be read and locked for these transfers, each with the id of its sender."""
    users = {user_id for sender_id, one in wanted for user_id in (sender_id, one.to_user_id)}
    return [uow.transfers.locking_free_parties(sorted(users))]


def transfer_all(
    uow: UnitOfWork, asked: Sequence[Asked[TransferCreate]], found: Sequence[Any]
) -> list[Transferred | DomainError | Busy]:
    """Carry out transfers of several senders one after another; `found` is what `reads` has found.

    Nothing is sent: the transfers are written with the events of the unit of work. A transfer is `Busy` if another
    transaction has locked one of its accounts. Dry runs are not supported.
    """
    [parties] = found
    outcomes: list[Transferred | DomainError | Busy] = []
    postings: list[Posting] = []
    actors: list[str | None] = []
    for one in asked:
        sender, recipient = one.caller.id, one.wanted.to_user_id
        if sender in parties.busy or recipient in parties.busy:
            outcomes.append(Busy())
            continue
        to = parties.balances[recipient] if recipient in parties.known or recipient == sender else None
        [outcome] = planning.carry_out(
            [Chain([Item("#", parties.balances[sender], to, one.wanted.amount, one.wanted.note)])]
        )
        if isinstance(outcome, DomainError):
            outcomes.append(outcome)
            continue
        postings.append(outcome)
        actors.append(one.caller.actor)
        record_moved(uow, outcome.movement(), TransferKind.transfer, one.trace)
        outcomes.append(Transferred([outcome], parties.at))
    if postings:
        uow.write_with_events(uow.ledger.posting(postings, TransferKind.transfer, actors))
    return outcomes


async def get(uow: UnitOfWork, caller: Caller, transfer_id: UUID, *, lock: bool = False) -> TransferRow:
    """The transfer, for its payer, its recipient and callers with `credits:read_all`.

    Raises `NotFound` for anyone else, so as not to reveal whether the transfer exists.
    """
    found = await uow.transfers.find(transfer_id, lock=lock)
    if found is None or not _may_see(caller, found):
        raise NotFound(f"transfer {transfer_id} does not exist, or you may not see it")
    return found


def shown(caller: Caller, found: TransferRow | TransferLine) -> TransferDetail:
    """The transfer as the caller sees it. Why the staff moved credits is for the staff."""
    seen = TransferDetail.model_validate(found, from_attributes=True)
    if seen.kind not in NOTED and not caller.may(Scope.credits_read_all):
        seen.note = ""
    return seen


async def listed(
    uow: UnitOfWork, caller: Caller, party: Party, wanted: PageQuery, *, holds: bool = False
) -> Page[TransferDetail]:
    """The transfers that the caller pays or receives, other than those of orders; with `holds`, only the holds."""
    rows = await uow.transfers.page(caller.id, party, wanted, holds=holds)
    return rows.shown(lambda row: shown(caller, row))


class _Writer:
    """Writes chains in savepoints: one for all of them if the database accepts them, smaller ones if it does not.

    Transfers that the balances do not allow are not written at all. What the database refuses violates a constraint or
    a trigger that the plan does not know about.
    """

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._savepoints = 0

    async def carry_out(self, chains: Sequence[Chain]) -> list[Outcome]:
        outcomes = planning.carry_out(chains)
        error = await self._write(outcomes)
        if error is None:
            return outcomes
        planning.take_back(outcomes)
        if len(chains) == 1:
            return await self._blame(chains[0], error)
        # Each half is planned again: what is refused no longer counts in the balances.
        middle = len(chains) // 2
        return [*await self.carry_out(chains[:middle]), *await self.carry_out(chains[middle:])]

    async def _blame(self, chain: Chain, error: DBAPIError) -> list[Outcome]:
        """Find the item that makes the database refuse a chain: the last one of the shortest prefix that it refuses."""
        taken, tried = 0, len(chain.items)
        while tried - taken > 1:
            middle = (taken + tried) // 2
            beginning = planning.carry_out([Chain(chain.items[:middle])])
            found = await self._write(beginning, keep=False)
            planning.take_back(beginning)
            if found is None:
                taken = middle
            else:
                tried, error = middle, found
        failed = tried - 1
        item = chain.items[failed]
        return planning.broken(chain, failed, refused(error, item.amount, item.pointer))

    async def _write(self, outcomes: Sequence[Outcome], *, keep: bool = True) -> DBAPIError | None:
        """Write in a savepoint. If the database refuses, nothing is written and its error is returned."""
        postings = [outcome for outcome in outcomes if isinstance(outcome, Posting)]
        if not postings:
            return None
        if self._savepoints == SAVEPOINT_BUDGET:
            raise BatchRefused("the database refuses many of these transfers; send them in smaller batches")
        self._savepoints += 1
        try:
            async with self._uow.savepoint(plain=True):
                await self._uow.ledger.write(postings, TransferKind.transfer)
                if not keep:
                    raise _TakenBack
        except DBAPIError as error:
            if not objects_to_rows(error):
                raise
            return error
        except _TakenBack:
            pass
        return None


class _TakenBack(Exception):
    """The database accepts the rows: roll back to the savepoint."""


async def _parties(uow: UnitOfWork, sender: Caller, recipient_ids: Sequence[int], dry_run: bool) -> Parties:
    """The accounts of transfers, locked. A dry run does not look for the recipients: it is free, and would reveal which
    users exist."""
    if dry_run:
        return (await uow.transfers.parties(sender.id, lock=False)).with_anyone(recipient_ids)
    return await uow.transfers.parties(sender.id, recipient_ids, lock=True)


def _item(parties: Parties, wanted: TransferCreate | TransferItem, pointer: str) -> Item:
    return Item(pointer, parties.sender, parties.recipients.get(wanted.to_user_id), wanted.amount, wanted.note)


def _may_see(caller: Caller, found: TransferRow) -> bool:
    return caller.may(Scope.credits_read_all) or caller.id in (found.from_user_id, found.to_user_id)
