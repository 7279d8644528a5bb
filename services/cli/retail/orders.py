"""Places the invoices as orders, waits until workers have processed them, and reads them back."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from services.cli.client import Login, Patience, Query, Reply, Service, for_each
from services.cli.progress import Display
from services.cli.retail.plan import Invoice
from services.cli.retail.shop import Buyer, Shop

_REFERENCES = 100
"""The most invoice numbers in one request: the limit of an `in` filter."""

_READERS = 2
"""Such a page contains thousands of lines: many at a time would only cost the service memory."""

_LOOK_SECONDS = 0.5
_WAITING = "pending"


@dataclass(frozen=True, slots=True)
class PlacedOrder:
    """An order as the service shows it."""

    status: str
    cents: int
    placed_at: datetime
    updated_at: datetime

    @property
    def is_settled(self) -> bool:
        """Whether no worker will process it further."""
        return self.status != _WAITING


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the service refused an invoice."""

    invoice: str
    reply: Reply


class OrderDesk:
    """Acts for the customers of the shop. Every method raises `ServiceError` if the service stays unreachable."""

    def __init__(self, service: Service, operator: Login, shop: Shop, display: Display, clients: int) -> None:
        self._service = service
        self._operator = operator
        self._shop = shop
        self._display = display
        self._clients = clients

    async def newest_order_at(self) -> datetime | None:
        """When the newest order of all was placed, by the service's clock: later ones are ours."""
        page = await self._service.read(self._operator, "/v1/orders", {"as": "everybody", "limit": 1})
        return next((datetime.fromisoformat(order["created_at"]) for order in page["data"]), None)

    async def place(self, invoices: Sequence[Invoice]) -> list[Refusal]:
        """Place all invoices, in order; those that were placed before are left unchanged."""
        advance = self._display.phase("orders", len(invoices))
        refusals: list[Refusal] = []

        async def place_one(invoice: Invoice) -> None:
            refusal = await self._place(invoice)
            if refusal is not None:
                refusals.append(refusal)
            advance(1)

        await for_each(invoices, place_one, self._clients)
        return refusals

    async def settle(self, invoices: Sequence[Invoice], patience: Patience) -> dict[str, PlacedOrder]:
        """All orders of these invoices by invoice number, once none of them waits for a worker.

        If `patience` is exhausted and none of them has moved, they are returned in their current state.
        """
        advance = self._display.phase("settled", len(invoices))
        orders: dict[str, PlacedOrder] = {}
        waiting = list(invoices)
        while True:
            orders |= await self._read(waiting)
            still = [i for i in waiting if i.number not in orders or not orders[i.number].is_settled]
            if len(still) < len(waiting):
                patience.progress()
                advance(len(waiting) - len(still))
            waiting = still
            if not waiting or patience.exhausted():
                return orders
            await asyncio.sleep(_LOOK_SECONDS)

    async def seller_received(self) -> int:
        """Cents on the seller's account."""
        return _cents((await self._service.read(self._shop.seller, "/v1/accounts/me"))["posted"])

    async def books(self) -> dict[str, Any]:
        """The service's own count of credits and stock."""
        books: dict[str, Any] = await self._service.read(self._operator, "/v1/operations/books")
        return books

    async def _place(self, invoice: Invoice) -> Refusal | None:
        lines = zip(invoice.products, invoice.pieces, strict=True)
        body = {
            "reference": invoice.number,
            "items": [{"product_id": self._shop.product_ids[product], "quantity": pieces} for product, pieces in lines],
        }
        buyer = self._buyer(invoice)
        reply = await self._service.call(buyer.login, "POST", "/v1/orders", body=body, key=invoice.number)
        # The reference outlives the key: after the keys' retention, only the reference shows that the order exists.
        if reply.is_success or (reply.status == 409 and reply.code == "already_exists"):
            return None
        return Refusal(invoice.number, reply)

    async def _read(self, invoices: Sequence[Invoice]) -> dict[str, PlacedOrder]:
        orders: dict[str, PlacedOrder] = {}

        async def read_some(some: Sequence[Invoice]) -> None:
            buyers = {invoice.number: self._buyer(invoice).user_id for invoice in some}
            only = f"reference:in:{','.join(buyers)}"
            params: Query = {"as": "everybody", "filter": only, "limit": 2 * _REFERENCES}
            for row in await self._service.read_pages(self._operator, "/v1/orders", params):
                # Imports of other files use the same numbers, for their own customers.
                if row["buyer"]["id"] == buyers[row["reference"]]:
                    orders[row["reference"]] = _placed_order(row)

        await for_each(_slices(invoices), read_some, _READERS)
        return orders

    def _buyer(self, invoice: Invoice) -> Buyer:
        return self._shop.buyers[invoice.customer]


def _slices(invoices: Sequence[Invoice]) -> Iterator[Sequence[Invoice]]:
    for start in range(0, len(invoices), _REFERENCES):
        yield invoices[start : start + _REFERENCES]


def _placed_order(row: Any) -> PlacedOrder:
    return PlacedOrder(
        row["status"],
        _cents(row["total"]),
        datetime.fromisoformat(row["created_at"]),
        datetime.fromisoformat(row["updated_at"]),
    )


def _cents(credits: str) -> int:  # noqa: A002 -- the domain's word
    return int(Decimal(credits) * 100)
