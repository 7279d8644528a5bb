"""All SQL about refunds of orders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, any_, literal
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import col, select

from services.fields import picked
from services.filters import EXACT, Filter, Filterable, Operator
from services.orders.models import LINES_A_PAGE, MAX_ITEMS, OrderItem, Refund, RefundBase, RefundLine
from services.orders.refunds import queries
from services.orders.repository import is_sold_by
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

    async def page(self, order_id: UUID, wanted: PageQuery, seller_id: int | None = None) -> Rows[Refund]:
        """Refunds of an order, oldest first, or those of what one seller sold, with these lines only.

        A page ends early rather than have more than `LINES_A_PAGE` lines.
        """
        mine = None if seller_id is None else _of_seller(seller_id)
        within = col(Refund.order_id) == order_id
        rows = await REFUNDS.page(self.session, select(Refund), wanted, within, search=mine)
        refund_id, line = col(RefundLine.refund_id), col(RefundLine.line)
        of_page = refund_id == any_(literal([refund.id for refund in rows.data], ARRAY(Uuid)))
        newest_first = (wanted.sort or REFUNDS.default).startswith("-")
        order = (refund_id.desc(), line.desc()) if newest_first else (refund_id, line)
        # In the order of the page: those beyond the limit belong to refunds that do not fit on it.
        statement = select(RefundLine).where(of_page).order_by(*order).limit(LINES_A_PAGE + MAX_ITEMS)
        if seller_id is not None:
            statement = statement.join(OrderItem, _OF_LINE).where(is_sold_by(seller_id))
        lines: dict[UUID, list[RefundLine]] = {refund.id: [] for refund in rows.data}
        for one in await self.session.exec(statement):
            lines[one.refund_id].append(one)
        rows = REFUNDS.within(rows, wanted, [len(lines[refund.id]) for refund in rows.data], LINES_A_PAGE)
        for refund in rows.data:
            set_committed_value(refund, "lines", sorted(lines[refund.id], key=lambda one: one.line))
        return rows

    async def amounts(self, refund_ids: Sequence[UUID], seller_id: int) -> dict[UUID, Decimal]:
        """What each of these refunds gave back for what the seller sold."""
        rows = await self.sql.fetch(queries.AMOUNTS, ids=list(refund_ids), seller_id=seller_id)
        return {row["refund_id"]: row["amount"] for row in rows}


_OF_LINE = (col(OrderItem.order_id) == col(RefundLine.order_id)) & (col(OrderItem.line) == col(RefundLine.line))


def _of_seller(seller_id: int) -> Filter:
    """Whether a refund has a line of this seller. Each refund that a page examines is looked up."""
    lines = select(literal(True)).select_from(RefundLine).join(OrderItem, _OF_LINE).where(is_sold_by(seller_id))
    mine = lines.where(col(RefundLine.refund_id) == col(Refund.id)).limit(1).correlate(Refund).scalar_subquery()
    return Filter(Filterable(mine, bool, EXACT), Operator.eq, [True])


_ID = Sortable(col(Refund.id), UUID)

REFUNDS = Listing[Refund](filters={}, sorts={"id": _ID}, key=_ID, default="id")

_WITH_LINES = selectinload(Refund.lines)  # type: ignore[arg-type]
