"""What `pool_pre_ping` costs: `python -m benchmarks.pre_ping`.

The same short transactions through two engines that differ in nothing else, in alternating rounds.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.stage import Stage, open_stage
from services.database import Database, open_database
from services.unit_of_work import UnitOfWork


@dataclass(frozen=True, slots=True)
class Compared:
    """Transactions per second without and with it: the medians of all rounds, and the median ratio of a round."""

    clients: int
    without: float
    with_it: float
    ratio: float


def main() -> int:
    options = _options()
    with open_stage() as stage:
        stage.migrate("measured")
        with psycopg.connect(stage.postgres.url("measured"), autocommit=True) as connection:
            connection.execute(
                "INSERT INTO users (email, full_name, hashed_password) VALUES ('a@example.com', 'A', '!')"
            )
        measured = asyncio.run(_measure(stage, options.seconds, options.rounds))
    if options.json:
        print(json.dumps([asdict(one) for one in measured], indent=2))
        return 0
    table = Table("clients", "transactions/s without", "with pre-ping", "ratio")
    for column in table.columns:
        column.justify = "right"
    for one in measured:
        table.add_row(str(one.clients), f"{one.without:,.0f}", f"{one.with_it:,.0f}", f"{one.ratio:.2f}")
    console = Console(width=100, highlight=False)
    console.print("Transactions of one read by key, each with a checkout from the pool", style="bold")
    console.print(table)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pre_ping", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of each round (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each engine (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


async def _measure(stage: Stage, seconds: float, rounds: int) -> list[Compared]:
    settings = stage.settings("measured")
    pinging = settings.model_copy(update={"database_pool_pre_ping": True})
    async with open_database(settings, "plain") as plain, open_database(pinging, "pinging") as checked:
        found = []
        for clients in (1, 8):
            rates: list[tuple[float, float]] = []
            for _ in range(rounds):
                without = await _rate(plain, clients, seconds)
                rates.append((without, await _rate(checked, clients, seconds)))
            found.append(
                Compared(
                    clients,
                    statistics.median(without for without, _ in rates),
                    statistics.median(with_it for _, with_it in rates),
                    statistics.median(with_it / without for without, with_it in rates),
                )
            )
        return found


async def _rate(database: Database, clients: int, seconds: float) -> float:
    """Transactions per second of this many concurrent clients."""
    ends_at = time.perf_counter() + seconds

    async def run() -> int:
        done = 0
        while time.perf_counter() < ends_at:
            async with UnitOfWork(database.write) as uow:
                await uow.users.get(1)
            done += 1
        return done

    started = time.perf_counter()
    done = sum(await asyncio.gather(*(run() for _ in range(clients))))
    return done / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
