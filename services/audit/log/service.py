"""The audit log: sealing gives each committed row its place in a chain of hashes; reading finds and exports rows."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias

from pydantic_core import to_json

from services.audit.log.repository import EXPORTED
from services.audit.log.schemas import ActPublic, Head, Wanted
from services.errors import NotFound
from services.exports import CsvLines, Format, JsonLines, harmless, instant
from services.unit_of_work import UnitOfWork

AT_ONCE = 1000
"""Rows that are sealed in one transaction."""


async def seal(uow: UnitOfWork) -> tuple[int, Head]:
    """Seal up to `AT_ONCE` rows, in the order of their ids; returns their number, and the head of the chain.

    Transactions that write acts do not wait for this, nor for each other. A row that is committed after rows with
    higher ids were sealed gets its place after them: the chain has the order of sealing.
    """
    head = await uow.audit_log.lock_head()
    # A separate statement after the lock, so it sees what another process has sealed just before.
    rows = await uow.audit_log.unsealed(AT_ONCE)
    hashes = []
    last = head.hash
    for row in rows:
        last = hashlib.sha256(last + row["content"]).digest()
        hashes.append(last)
    if rows:
        head = Head(head.position + len(rows), last)
        await uow.audit_log.seal([row["id"] for row in rows], hashes, head)
    return len(rows), head


async def find(uow: UnitOfWork, wanted: Wanted, limit: int) -> list[ActPublic]:
    """The newest entries. Raises `NotFound` if no user has the e-mail address."""
    user_id, objects = None, list[str]()
    if wanted.user is not None:
        user = await uow.users.by_email(wanted.user)
        if user is None:
            raise NotFound(f"no user has the e-mail address {wanted.user}")
        user_id, objects = user.id, [f"user/{user.id}"]
        account = await uow.ledger.account_of(user.id)
        if account is not None:
            objects.append(f"account/{account.id}")
    rows = await uow.audit_log.find(
        limit,
        user_id=user_id,
        about=objects,
        actor=wanted.actor,
        action=wanted.action,
        what=wanted.object,
        since=_utc(wanted.since),
        until=_utc(wanted.until),
    )
    return [ActPublic.model_validate(row) for row in rows]


def _utc(at: datetime | None) -> datetime | None:
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


Found: TypeAlias = tuple[int, Sequence[Sequence[Any]]]
"""The last row of the export, and a piece of it."""

RunRead: TypeAlias = Callable[[Callable[[UnitOfWork], Awaitable[Found]]], Awaitable[Found]]
"""Runs a read in a transaction of its own, on whichever server has what is asked for."""


async def export(run: RunRead, form: Format, filters: Sequence[str]) -> AsyncIterator[bytes]:
    """A line for each row that there is when the export begins, oldest first; each piece in its own transaction.

    Raises `BadQuery` before the first piece.
    """
    text = CsvLines(EXPORTED) if form is Format.csv else JsonLines(EXPORTED)
    last, after = None, None
    while True:
        last, rows = await run(partial(_next, filters, last, after))
        if rows or after is None:
            yield text.piece(map(_csv, rows) if form is Format.csv else rows)
        if not rows:
            return
        after = rows[-1][0]


async def _next(filters: Sequence[str], last: int | None, after: int | None, uow: UnitOfWork) -> Found:
    if last is None:
        last = await uow.audit_log.newest()
    async for rows in uow.audit_log.exported(filters, last=last, after=after):
        return last, rows
    return last, []


_AT, _DETAILS = EXPORTED.index("at"), EXPORTED.index("details")


def _csv(row: Sequence[Any]) -> list[object]:
    values = [harmless(value) if isinstance(value, str) else value for value in row]
    values[_AT] = instant(row[_AT])
    values[_DETAILS] = to_json(row[_DETAILS]).decode()
    return values
