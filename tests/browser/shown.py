"""A service in which something of each kind has happened, and the way to each page that shows it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from playwright.async_api import expect

from services.database import Database
from services.users.models import User
from tests.browser.visitor import Visitor
from tests.concurrency.ticks import rows
from tests.processes import Running


@dataclass(frozen=True, slots=True)
class Shown:
    """What the pages are about."""

    url: str
    operator: User
    buyer: User
    order_id: str
    position: int
    fingerprint: str
    action_id: str


async def letters(database: Database, number: int, worker: Running) -> tuple[int, str]:
    """Wait for so many dead letters; returns the position of the first, and its fingerprint."""
    for _ in range(600):
        found = await rows(database, "SELECT position, fingerprint FROM dead_letters ORDER BY position")
        if len(found) == number:
            return int(found[0][0]), str(found[0][1])
        await asyncio.sleep(0.1)
    pytest.fail(f"{len(found)} of {number} events have failed; the worker: {worker.said()[-2000:]}")


async def search_orders(visitor: Visitor) -> None:
    await visitor.open("/console/orders")
    await visitor.page.get_by_label("Status").select_option("any")
    await visitor.page.get_by_role("button", name="Search").click()
    await expect(visitor.page.get_by_role("cell", name="kitchen-")).to_have_count(2)


def at(path: str, status: int = 200) -> Callable[[Visitor], Awaitable[None]]:
    async def go(visitor: Visitor) -> None:
        await visitor.open(path, status)

    return go


def pages_about(shown: Shown) -> dict[str, Callable[[Visitor], Awaitable[None]]]:
    """The way to each page, by its name."""
    kind = f"fingerprint={shown.fingerprint}"
    return {
        "overview": at("/console/overview"),
        "events": at("/console/events"),
        "events that wait": at("/console/events?type=test.tick&waits=behind"),
        "why an event waits": at("/console/events?q=tick/parcel-0"),
        "failures": at("/console/failures"),
        "a failure": at(f"/console/failures/group?{kind}"),
        "a dead letter": at(f"/console/failures/letters/{shown.position}"),
        "all of a kind": at(f"/console/failures/all?act=replay&{kind}"),
        "a bulk action": at(f"/console/bulk/{shown.action_id}"),
        "orders": search_orders,
        "an order": at(f"/console/orders/{shown.order_id}"),
        "credits": at("/console/credits"),
        "an account": at(f"/console/credits/accounts/{shown.buyer.id}"),
        "consumers": at("/console/consumers"),
        "workers": at("/console/workers"),
        "log of actions": at("/console/log"),
        "a kind without letters": at("/console/failures/group?fingerprint=0000000000000000", 404),
        "an error": at("/console/nowhere", 404),
    }
