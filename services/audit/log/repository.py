"""All SQL about the audit log; `services/outbox/recording` writes it."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import or_
from sqlmodel import col, select

from services.acting import Action
from services.audit.log import queries
from services.audit.log.models import ActBase, AuditLogRow
from services.audit.log.schemas import Head
from services.audit.schemas import Difference
from services.fields import Id, Instant, Text
from services.filters import EXACT, ORDERED, Filterable
from services.query import Listing, Sortable
from services.repository import Repository
from services.sql import Row


class AuditLogRepository(Repository[AuditLogRow]):
    model = AuditLogRow

    async def lock_head(self) -> Head:
        """The head of the chain, locked until the transaction ends: no one else seals rows."""
        (row,) = await self.sql.fetch(queries.LOCK_HEAD)
        return Head(row["position"], row["hash"])

    async def unsealed(self, limit: int) -> Sequence[Row]:
        """Up to `limit` committed rows that have no place in the chain, with the content that is hashed."""
        return await self.sql.fetch(queries.UNSEALED, limit=limit)

    async def seal(self, ids: Sequence[int], hashes: Sequence[bytes], head: Head) -> None:
        """Give these rows the places up to `head`, which is the last of them. The caller has locked the head."""
        first = head.position - len(ids) + 1
        positions = list(range(first, head.position + 1))
        sealed = await self.sql.run(queries.SEAL, ids=list(ids), positions=positions, hashes=list(hashes))
        assert sealed == len(ids), "a row was sealed although the head was locked"
        await self.sql.run(queries.MOVE_HEAD, position=head.position, hash=head.hash)

    async def cut_after(self, noted: Head) -> list[Difference]:
        """A difference if the audit log no longer has this head, which was noted when its rows were sealed."""
        rows = await self.sql.fetch(queries.NOTED_HEAD, position=noted.position, hash=noted.hash)
        return [Difference.from_row(row) for row in rows]

    def exported(
        self, filters: Sequence[str], *, last: int, after: int | None
    ) -> AsyncIterator[Sequence[Sequence[Any]]]:
        """Rows as `EXPORTED`, oldest first, in batches as `stream` has them: those after `after`, up to `last`.

        Raises `BadQuery`.
        """
        columns = [col(getattr(AuditLogRow, name)) for name in EXPORTED[1:]]
        return self.stream(columns, col(AuditLogRow.id) <= last, *AUDIT_LOG.conditions(filters), after=after)

    async def find(
        self,
        limit: int,
        *,
        user_id: int | None,
        about: Sequence[str],
        actor: str | None,
        action: Action | None,
        what: str | None,
        since: datetime | None,
        until: datetime | None,
    ) -> Sequence[AuditLogRow]:
        """The newest rows that meet every condition given, the newest first; `about` are objects of the user's."""
        row = AuditLogRow
        conditions = [
            column == value
            for column, value in ((col(row.actor), actor), (col(row.action), action), (col(row.object), what))
            if value is not None
        ]
        if user_id is not None:
            conditions.append(or_(col(row.user_id) == user_id, col(row.object).in_(about)))
        if since is not None:
            conditions.append(col(row.at) >= since)
        if until is not None:
            conditions.append(col(row.at) < until)
        return (await self.session.exec(select(row).where(*conditions).order_by(col(row.id).desc()).limit(limit))).all()

    async def newest(self) -> int:
        """The id of the newest row; 0 if there is none."""
        for row in await self.sql.fetch(queries.NEWEST):
            return int(row["id"])
        return 0


EXPORTED = tuple(ActBase.model_fields)
"""The fields of an act that the list and an export have."""

_ID = Sortable(col(AuditLogRow.id), Id)

_INDEXED = frozenset({"id"})

AUDIT_LOG = Listing[AuditLogRow](
    filters={
        "actor": Filterable(col(AuditLogRow.actor), Text, EXACT, indexed=_INDEXED),
        "user_id": Filterable(col(AuditLogRow.user_id), Id, EXACT, indexed=_INDEXED),
        "action": Filterable(col(AuditLogRow.action), Action, EXACT, indexed=_INDEXED),
        "object": Filterable(col(AuditLogRow.object), Text, EXACT, indexed=_INDEXED),
        "at": Filterable(col(AuditLogRow.at), Instant, ORDERED),
    },
    sorts={"id": _ID, "at": Sortable(col(AuditLogRow.at), Instant)},
    key=_ID,
    default="-id",
)
