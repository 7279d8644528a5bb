"""What the savepoint of a movement of credits costs: `python -m benchmarks.savepoints`."""

import argparse
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from time import perf_counter, process_time
from typing import Any
from uuid import UUID

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.report import percentile
from benchmarks.sessions import session_of
from benchmarks.shop import Shop, open_shop
from benchmarks.stage import Stage, check_books, open_stage
from services.credits.ledger.repository import LedgerRepository
from services.credits.schemas import TransferCreate
from services.credits.transfers import service as transfers
from services.database import Database, open_database
from services.errors import InsufficientCredits
from services.orders import service as orders
from services.orders.schemas import OrderCreate, OrderItemCreate
from services.transaction import RepositoryOf
from services.unit_of_work import OpenUnitOfWork, UnitOfWork, background
from services.users.repository import SignedIn
from services.users.rights import Role

_PATIENCE = orders.Patience(timedelta(hours=1), timedelta(hours=1))
_ITEMS = 3
_BUYERS = 200
_WARMUP = 50


class _Without(UnitOfWork):
    """A unit of work whose savepoints do nothing."""

    @asynccontextmanager
    async def savepoint(self, **_: bool) -> AsyncIterator[None]:
        yield


class _NobodyCanPay(LedgerRepository):
    async def hold(self, *_: Any) -> None:
        raise InsufficientCredits("for orders that await payment")


class _Unpaid(UnitOfWork):
    ledger = RepositoryOf(_NobodyCanPay)


Work = Callable[[OpenUnitOfWork], Awaitable[None]]


@dataclass(slots=True)
class _Times:
    """Seconds of each piece of work: by the clock, and of this process."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def medians(self) -> tuple[float, float]:
        """In milliseconds."""
        return percentile(sorted(self.wall), 0.5) * 1000, percentile(sorted(self.cpu), 0.5) * 1000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.savepoints", description=__doc__)
    parser.add_argument("--number", type=int, default=2000, help="of each kind, with and without (default: 2000)")
    options = parser.parse_args()
    with open_stage() as stage:
        stage.migrate("shop")
        shop = open_shop(stage.postgres.url("shop"), _BUYERS)
        measured = uvloop.run(_measure(stage, shop, options.number))
        check_books(stage, "shop")
    table = Table("", "without: ms", "with: ms", "difference", "without: CPU ms", "with: CPU ms", "difference")
    for name, (without, with_it) in measured.items():
        (wall, cpu), (wall_with, cpu_with) = without.medians(), with_it.medians()
        figures = (wall, wall_with, wall_with - wall, cpu, cpu_with, cpu_with - cpu)
        table.add_row(name, *(f"{figure:.3f}" for figure in figures))
    console = Console(width=120, highlight=False)
    console.print(
        f"One at a time, {options.number} of each, in turn with and without the savepoint; medians", style="bold"
    )
    console.print(table)
    return 0


async def _measure(stage: Stage, shop: Shop, number: int) -> dict[str, tuple[_Times, _Times]]:
    chance = random.Random(1)
    people = [
        SignedIn(buyer_id, f"User {buyer_id}", Role.customer, session_of(buyer_id).session_id)
        for buyer_id in shop.buyer_ids
    ]
    async with open_database(stage.settings("shop"), "benchmark") as database:
        placing = [_placing(shop, chance, people) for _ in range(2 * number)]
        moving = [_transfer(chance, people) for _ in range(2 * number)]
        paying = [await _payment(database, shop, chance, people) for _ in range(2 * number)]
        return {
            "placing an order": await _compare(database, placing),
            "paying for an order": await _compare(database, paying),
            "a single transfer": await _compare(database, moving),
        }


async def _compare(database: Database, works: Sequence[Work]) -> tuple[_Times, _Times]:
    """The times without and with savepoints, in turn, so that both meet the same disturbances."""
    times = (_Times(), _Times())
    for place, work in enumerate(works):
        kind = (_Without, UnitOfWork)[place % 2]
        began, cpu = perf_counter(), process_time()
        await work(lambda kind=kind: kind(database.write))  # type: ignore[misc]
        if place >= _WARMUP:
            times[place % 2].wall.append(perf_counter() - began)
            times[place % 2].cpu.append(process_time() - cpu)
    return times


def _order(shop: Shop, chance: random.Random) -> OrderCreate:
    products = chance.sample(shop.product_ids, _ITEMS)
    return OrderCreate(items=[OrderItemCreate(product_id=one, quantity=chance.randint(1, 3)) for one in products])


def _placing(shop: Shop, chance: random.Random, people: Sequence[SignedIn]) -> Work:
    buyer, wanted = chance.choice(people), _order(shop, chance)

    async def place(open_unit_of_work: OpenUnitOfWork) -> None:
        async with background(open_unit_of_work) as uow:
            await orders.place(uow, buyer, wanted, _PATIENCE)

    return place


def _transfer(chance: random.Random, people: Sequence[SignedIn]) -> Work:
    sender, recipient = chance.sample(people, 2)
    wanted = TransferCreate(to_user_id=recipient.id, amount=Decimal(chance.randint(1, 999)) / 100)

    async def transfer(open_unit_of_work: OpenUnitOfWork) -> None:
        async with background(open_unit_of_work) as uow:
            await transfers.transfer(uow, sender, wanted)

    return transfer


async def _payment(database: Database, shop: Shop, chance: random.Random, people: Sequence[SignedIn]) -> Work:
    buyer = chance.choice(people)
    async with background(lambda: _Unpaid(database.write)) as uow:
        order_id: UUID = (await orders.place(uow, buyer, _order(shop, chance), _PATIENCE)).id

    async def pay(open_unit_of_work: OpenUnitOfWork) -> None:
        async with background(open_unit_of_work) as uow:
            await orders.pay(uow, buyer, order_id, _PATIENCE)

    return pay


if __name__ == "__main__":
    sys.exit(main())
