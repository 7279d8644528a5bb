"""All SQL about refunds of orders."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from sqlalchemy.orm import selectinload
from sqlmodel import col, select

from services.fields import picked
from services.orders.models import Refund, RefundBase
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
        """Refunds of an order, oldest first."""
        statement = select(Refund).options(_WITH_LINES)
        return await REFUNDS.page(self.session, statement, wanted, col(Refund.order_id) == order_id)


_ID = Sortable(col(Refund.id), UUID)

REFUNDS = Listing[Refund](filters={}, sorts={"id": _ID}, key=_ID, default="id")

_WITH_LINES = selectinload(Refund.lines)  # type: ignore[arg-type]
