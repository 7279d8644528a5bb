"""What is stored about a user: exporting it, and erasing it while the books stay."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from services.acting import Action
from services.credits.ledger.service import close_account
from services.errors import ErasureBlocked, InvalidInput, NotFound
from services.exports import JsonLines
from services.sql import Row
from services.unit_of_work import UnitOfWork
from services.users.events import UserErased
from services.users.models import Caller
from services.users.personal.queries import SOURCES
from services.users.personal.repository import columns_of
from services.users.roles import service as roles

_ROWS_A_PIECE = 500

Rows: TypeAlias = Sequence[Sequence[Any]]
RunRead: TypeAlias = Callable[[Callable[[UnitOfWork], Awaitable[Rows]]], Awaitable[Rows]]
"""Runs a read in a transaction of its own, on whichever server has what is asked for."""


async def find(uow: UnitOfWork, wanted: int | str) -> int:
    """The id of the user with this id or e-mail address, even if they are deleted.

    Raises `NotFound` if there is none, or what is stored about them was erased.
    """
    user_id = await (uow.personal.find(user_id=wanted) if isinstance(wanted, int) else uow.personal.find(email=wanted))
    if user_id is None:
        raise _unknown(wanted)
    return user_id


async def export(run: RunRead, user_id: int, account_id: int) -> AsyncIterator[bytes]:
    """A JSON object for each row about the user, on a line of its own, with the part of the export that it belongs to.

    Each piece is read in a transaction of its own, which ends before the piece is yielded, so that a slow reader keeps
    none open. A row is shown as its piece finds it.
    """
    for part, source in SOURCES.items():
        names = columns_of(part)
        places = [names.index(name) for name in source.key]
        text = JsonLines(["part", *names])
        after: tuple[Any, ...] | None = None
        while True:
            rows = await run(partial(_read, part, user_id, account_id, after))
            yield text.piece((part, *row) for row in rows)
            if len(rows) < _ROWS_A_PIECE:
                break
            after = tuple(rows[-1][place] for place in places)


async def _read(part: str, user_id: int, account_id: int, after: tuple[Any, ...] | None, uow: UnitOfWork) -> Rows:
    return await uow.personal.rows(part, user_id, account_id, after, _ROWS_A_PIECE)


async def erase_other(uow: UnitOfWork, caller: Caller, user_id: int) -> None:
    """Erase what identifies another user. Raises the errors of `erase`."""
    if caller.id == user_id:
        raise InvalidInput("you cannot erase yourself here; use DELETE /v1/users/me/personal-data")
    await erase(uow, user_id)


async def erase(uow: UnitOfWork, user_id: int) -> None:
    """Erase what identifies the user, who is deleted permanently: it cannot be undone. The books stay.

    Their account is closed, their products go off sale, and their address is free. Raises `NotFound` if there is no
    such user, or they are erased, `Conflict` for the last operator or admin, and `ErasureBlocked` while credits or
    orders of theirs need them.
    """
    found = await uow.personal.lock(user_id)
    if found is None:
        raise _unknown(user_id)
    if not found["deleted"]:
        await roles.keep_one_of_each(uow, user_id)
    await uow.personal.lock_orders(user_id)
    # From here on, other transactions that use the account wait, and then find it closed.
    account = await uow.ledger.lock_account(user_id)
    assert account is not None, "every user has an account"
    blockers = _blockers(await uow.personal.blocked(user_id))
    if blockers:
        raise ErasureBlocked(f"the user cannot be erased yet: {'; '.join(blockers)}")
    await uow.products.take_off_sale(user_id)
    if account.closed_at is None:
        await close_account(uow, user_id)
    await uow.personal.erase(user_id, found["email"])
    await uow.registrations.forget(found["email"])
    uow.record(UserErased(user_id=user_id))
    uow.record_act(Action.erased, f"user/{user_id}")


def _blockers(found: Row) -> list[str]:
    """What must be done first, in words."""
    said = {
        f"{found['posted']} credits are left on the account: spend them, or ask an operator to take them": found[
            "posted"
        ],
        f"{found['held']} credits are held: let the holds be posted or voided": found["held"],
        f"{found['to_receive']} payments to the user are pending: post or void them": found["to_receive"],
        f"{found['bought']} orders are open: cancel them, or wait until they are fulfilled": found["bought"],
        f"{found['sold']} orders of the user's products are open: fulfil or cancel them": found["sold"],
        f"{found['adjustments']} adjustments wait for approval: approve or reject them": found["adjustments"],
    }
    return [words for words, number in said.items() if number]


def _unknown(wanted: int | str) -> NotFound:
    return NotFound(f"there is no user {wanted}, or the user was erased")
