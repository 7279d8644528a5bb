"""All SQL about refunds of orders."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, any_, literal
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import col, select

from services.fields import picked
from services.orders.models import LINES_A_PAGE, MAX_ITEMS, Refund, RefundBase, RefundLine
from services.orders.refunds import queries
from services.query import Listing, PageQuery, Rows, Sortable
from services.sql import SqlAccess


@dataclass(frozen=True, slots=True)
class SoldLine:
    """One line of an order: what was sold, what was returned, and who was paid for it."""

    line: int
    product_id: int
    quantity: int
    returned: int
    unit_price: Decimal
    seller_id: int
    seller_account_id: int

    @property
    def left(self) -> int:
        """The number of pieces that were not refunded."""
        return self.quantity - self.returned


class RefundRepository(SqlAccess):
    """Refunds. The caller has locked the order."""

    async def sold(self, order_id: UUID) -> list[SoldLine]:
        """The order's lines, by number."""
        return [SoldLine(**row) for row in await self.sql.fetch(queries.SOLD, order_id=order_id)]

    async def write(
        self,
        refund_id: UUID,
        order_id: UUID,
        *,
        amount: Decimal,
        pieces: Mapping[int, int],
        said: RefundBase,
        requested_by: int,
    ) -> None:
        """Write a refund of `pieces` of each line."""
        await self.sql.run(
            queries.WRITE,
            id=refund_id,
            order_id=order_id,
            amount=amount,
            lines=list(pieces),
            quantities=list(pieces.values()),
            requested_by=requested_by,
            **picked(said, queries.SAID),
        )

    async def get(self, refund_id: UUID) -> Refund:
        return (await self.session.exec(select(Refund).where(col(Refund.id) == refund_id).options(_WITH_LINES))).one()

    async def page(self, order_id: UUID, wanted: PageQuery) -> Rows[Refund]:
        """Refunds of an order, oldest first. A page ends early rather than have more than `LINES_A_PAGE` lines."""
        rows = await REFUNDS.page(self.session, select(Refund), wanted, col(Refund.order_id) == order_id)
        refund_id, line = col(RefundLine.refund_id), col(RefundLine.line)
        of_page = refund_id == any_(literal([refund.id for refund in rows.data], ARRAY(Uuid)))
        newest_first = (wanted.sort or REFUNDS.default).startswith("-")
        order = (refund_id.desc(), line.desc()) if newest_first else (refund_id, line)
        # In the order of the page: those beyond the limit belong to refunds that do not fit on it.
        statement = select(RefundLine).where(of_page).order_by(*order).limit(LINES_A_PAGE + MAX_ITEMS)
        lines: dict[UUID, list[RefundLine]] = {refund.id: [] for refund in rows.data}
        for one in await self.session.exec(statement):
            lines[one.refund_id].append(one)
        rows = REFUNDS.within(rows, wanted, [len(lines[refund.id]) for refund in rows.data], LINES_A_PAGE)
        for refund in rows.data:
            set_committed_value(refund, "lines", sorted(lines[refund.id], key=lambda one: one.line))
        return rows


_ID = Sortable(col(Refund.id), UUID)

REFUNDS = Listing[Refund](filters={}, sorts={"id": _ID}, key=_ID, default="id")

_WITH_LINES = selectinload(Refund.lines)  # type: ignore[arg-type]
