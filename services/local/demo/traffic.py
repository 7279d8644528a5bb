"""The demo's traffic: what buyers and sellers do, at a steady rate, until it is stopped."""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from services.cli.client import Reply, Service, ServiceError
from services.local.demo.failures import KINDS, REFERENCE
from services.local.demo.shop import Person, Seller, Shop, ShopKeeper

CLIENTS = 32
"""The most requests at the same time: if the service is slower than the rate, the rate falls."""

_FULL_SECONDS = 0.02
"""Seconds until it looks again whether there may be another request."""

_PATIENCE = 10.0
"""Seconds in which requests that are under way at the end may still be answered; some may wait for a limit."""

_OLD_ENOUGH = 2.0
"""Seconds after which an order has usually been confirmed."""

_ORDERS_PER_STOCK = 500
_REMEMBERED = 500


@dataclass(frozen=True, slots=True)
class Placed:
    """An order that may still be fulfilled, cancelled or returned."""

    order_id: UUID
    buyer: Person
    seller: Seller
    at: float


@dataclass(slots=True)
class Done:
    """What was done, and how often: `requests` by name, and `refused` by the code of the answer."""

    requests: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    limited: int = 0
    given_up: int = 0
    """Requests that were still under way when it had to end."""

    @property
    def total(self) -> int:
        return self.requests.total()

    def as_json(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 1),
            "requests": dict(sorted(self.requests.items())),
            "refused": dict(sorted(self.refused.items())),
            "answers_with_429": self.limited,
            "given_up": self.given_up,
        }


class Traffic:
    """Starts `rate` actions a second, as strangers would: not in step. The share `fails` of the orders makes failures.

    `done` is what has been done so far.
    """

    def __init__(self, service: Service, keeper: ShopKeeper, shop: Shop, *, rate: float, fails: float) -> None:
        self.done = Done()
        self._service = service
        self._keeper = keeper
        self._shop = shop
        self._rate = rate
        self._fails = fails
        self._orders: deque[Placed] = deque(maxlen=_REMEMBERED)
        self._random = random.Random()  # noqa: S311 (what happens in a shop)
        self._actions: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (62, self._order),
            (5, self._order_too_dear),
            (4, self._order_sold_out),
            (3, self._order_and_cancel),
            (6, self._cancel),
            (8, self._fulfil),
            (5, self._return),
            (7, self._transfer),
        ]

    async def run(self, stop: asyncio.Event, seconds: float | None) -> None:
        """Act until `stop` is set or the time is up; what was begun by then is given a while. Raises `ServiceError`."""
        started = time.monotonic()
        due = started
        running: set[asyncio.Task[None]] = set()
        weights, actions = zip(*self._actions, strict=True)
        try:
            while not stop.is_set() and (seconds is None or due - started < seconds):
                await _wait(stop, due - time.monotonic())
                running = {task for task in running if not _is_over(task)}
                if stop.is_set() or len(running) >= CLIENTS:
                    due = time.monotonic() + _FULL_SECONDS
                    continue
                (action,) = self._random.choices(actions, weights)
                running.add(asyncio.create_task(action()))
                self.done.seconds = time.monotonic() - started
                # What could not be started in time is left out, and not made up for in a burst.
                due = max(due + self._random.expovariate(self._rate), time.monotonic() - 1 / self._rate)
            running = await _ended_in_time(running)
            self.done.given_up = len(running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            self.done.seconds = time.monotonic() - started
            self.done.limited = self._service.limited

    async def _order(self) -> None:
        buyer, seller = self._anyone(self._shop.buyers), self._anyone(self._shop.sellers)
        chosen = self._random.sample(seller.products, self._random.randint(1, 3))
        items = [{"product_id": product, "quantity": self._random.randint(1, 3)} for product in chosen]
        if self._random.random() < self._fails:
            reference = f"{REFERENCE}{self._random.choice(KINDS)}-{uuid4().hex[:12]}"
            await self._place(buyer, items, "orders that will fail", reference=reference)
            return
        reply = await self._place(buyer, items, "orders")
        if not reply.is_success:
            return
        if reply.body["status"] == "awaiting_payment":
            await self._keeper.top_up(buyer)
            await self._act("payments", buyer, f"/v1/orders/{reply.body['id']}/pay")
        self._orders.append(Placed(UUID(reply.body["id"]), buyer, seller, time.monotonic()))
        if self.done.requests["orders"] % _ORDERS_PER_STOCK == 0:
            for one in self._shop.sellers:
                await self._keeper.restock(one)

    async def _order_too_dear(self) -> None:
        items = [{"product_id": self._anyone(self._shop.sellers).dear, "quantity": 1}]
        await self._place(self._anyone(self._shop.buyers), items, "orders", on_insufficient_credits="refuse")

    async def _order_sold_out(self) -> None:
        """A worker rejects it."""
        items = [{"product_id": self._anyone(self._shop.sellers).sold_out, "quantity": 1}]
        await self._place(self._anyone(self._shop.buyers), items, "orders")

    async def _order_and_cancel(self) -> None:
        """It awaits payment, and the buyer thinks better of it."""
        buyer = self._anyone(self._shop.buyers)
        items = [{"product_id": self._anyone(self._shop.sellers).dear, "quantity": 1}]
        reply = await self._place(buyer, items, "orders")
        if reply.is_success:
            await self._act("cancellations", buyer, f"/v1/orders/{reply.body['id']}/cancel", {"reason": "too dear"})

    async def _cancel(self) -> None:
        if (order := self._take()) is not None:
            path = f"/v1/orders/{order.order_id}/cancel"
            await self._act("cancellations", order.buyer, path, {"reason": "ordered by mistake"})

    async def _fulfil(self) -> None:
        if (order := self._take()) is not None:
            await self._act("shipments", order.seller, f"/v1/orders/{order.order_id}/fulfil")

    async def _return(self) -> None:
        if (order := self._take()) is not None:
            await self._act("returns", order.seller, f"/v1/orders/{order.order_id}/refunds", {"reason": "came back"})

    async def _transfer(self) -> None:
        """Sellers spend what they earn, so that buyers have credits again."""
        sender = self._anyone([*self._shop.sellers, *self._shop.buyers])
        recipient = self._anyone([buyer for buyer in self._shop.buyers if buyer is not sender])
        amount = Decimal(self._random.randint(100, 6000)) / 100
        body = {"to_user_id": recipient.user_id, "amount": str(amount), "note": "thank you"}
        await self._act("transfers", sender, "/v1/transfers", body)

    async def _place(self, buyer: Person, items: list[dict[str, int]], name: str, **more: str) -> Reply:
        return await self._act(name, buyer, "/v1/orders", {"items": items, **more})

    async def _act(self, name: str, who: Person, path: str, body: object = None) -> Reply:
        reply = await self._service.call(who.login, "POST", path, body=body, key=f"demo-{uuid4().hex}")
        self.done.requests[name] += 1
        if not reply.is_success:
            self.done.refused[reply.code or str(reply.status)] += 1
        return reply

    def _take(self) -> Placed | None:
        """An order that is old enough; it is not taken again."""
        ready = [one for one in self._orders if time.monotonic() - one.at > _OLD_ENOUGH]
        if not ready:
            return None
        order = self._random.choice(ready)
        self._orders.remove(order)
        return order

    def _anyone(self, people: "list[Any]") -> Any:
        return self._random.choice(people)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    """Until the time has passed, or `stop` is set."""
    try:
        async with asyncio.timeout(max(seconds, 0)):
            await stop.wait()
    except TimeoutError:
        return


async def _ended_in_time(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Those that still run after the patience. Raises what another raised."""
    if not running:
        return running
    _, left = await asyncio.wait(running, timeout=_PATIENCE)
    for task in running - left:
        _is_over(task)
    return left


def _is_over(task: asyncio.Task[None]) -> bool:
    """Whether it has ended. Raises `ServiceError` if that is how."""
    if not task.done():
        return False
    if (error := task.exception()) is not None:
        assert isinstance(error, ServiceError), error
        raise error
    return True
