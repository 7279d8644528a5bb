"""The time that a slice of each sweep takes with few and with many due rows: `python -m benchmarks.expiry`."""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.report import Target
from benchmarks.stage import Stage, check_books, open_stage
from services.credits.holds.service import HOLDS
from services.database import Database, open_database
from services.orders.expiry.service import HELD, UNPAID
from services.sweeps.service import Sweep, take_slice
from services.unit_of_work import UnitOfWork

_SLICE = 200
_MEASURED = 5
"""The fastest of this many slices counts, since other work disturbed it least. The few rows make no more slices."""

_FEW = _SLICE * _MEASURED
_MOST = 1.5
"""The highest ratio: chance makes it differ from 1; reading all due rows would make it hundreds."""

# As many due rows for each sweep: unpaid orders, orders with a hold, holds between users. Ids grow with time, as the
# application's do.
_FILL = """
    SET session_replication_role = replica;
    INSERT INTO users (email, full_name, hashed_password)
    SELECT format('user%s@example.com', n), format('User %s', n), '!' FROM generate_series(1, 1000) AS n;
    INSERT INTO accounts (user_id) SELECT id FROM users;

    CREATE TEMP TABLE payer AS
    SELECT id, user_id, row_number() OVER (ORDER BY id) AS n, gen_random_uuid() AS top_up
    FROM accounts WHERE user_id IS NOT NULL;
    CREATE TEMP TABLE issuance AS SELECT id FROM accounts WHERE system_name = 'issuance';
    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, resolved_at)
    SELECT top_up, issuance.id, payer.id, 100000, 'top_up', 'posted', 100000, now() FROM payer, issuance;
    INSERT INTO entries (account_id, version, transfer_id, amount, balance)
    SELECT payer.id, 1, top_up, 100000, 100000 FROM payer
    UNION ALL SELECT issuance.id, n, top_up, -100000, -100000 * n FROM payer, issuance;

    CREATE TEMP TABLE due AS
    SELECT number AS n, ('00000000-0000-7000-8000-' || lpad(to_hex(number * 3 + place), 12, '0'))::uuid AS order_id,
        ('00000000-0000-7000-9000-' || lpad(to_hex(number * 3 + place), 12, '0'))::uuid AS transfer_id, kind,
        payer.id AS payer, payer.user_id, now() - interval '1 day' + number * interval '1 millisecond' AS expires_at
    FROM generate_series(1, {due}) AS due(number) JOIN payer ON payer.n = 1 + number % 1000,
        unnest(ARRAY['unpaid', 'held', 'hold']) WITH ORDINALITY AS kinds(kind, place);
    INSERT INTO orders (id, buyer_id, status, total, item_count, expires_at)
    SELECT order_id, user_id, CASE kind WHEN 'held' THEN 'pending' ELSE 'awaiting_payment' END, 1, 1,
        CASE kind WHEN 'unpaid' THEN expires_at END FROM due WHERE kind <> 'hold' ORDER BY n;
    INSERT INTO order_transitions (order_id, to_status) SELECT id, status FROM orders;
    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, order_id, expires_at)
    SELECT transfer_id, payer, (SELECT id FROM payer WHERE payer.n = 1 + (due.n + 1) % 1000), 1,
        CASE kind WHEN 'held' THEN 'order' ELSE 'transfer' END, 'pending', CASE kind WHEN 'held' THEN order_id END,
        expires_at
    FROM due WHERE kind <> 'unpaid' ORDER BY n;

    UPDATE accounts SET posted = sums.posted, version = sums.version FROM (
        SELECT account_id, sum(amount) AS posted, max(version) AS version FROM entries GROUP BY account_id
    ) AS sums WHERE sums.account_id = accounts.id;
    UPDATE accounts SET held = sums.held FROM (
        SELECT debit_account_id, sum(amount) AS held FROM transfers WHERE state = 'pending' GROUP BY debit_account_id
    ) AS sums WHERE sums.debit_account_id = accounts.id;
"""


@dataclass(frozen=True, slots=True)
class Slices:
    """Milliseconds per slice of one sweep: with few rows due, and at the start and the end of many."""

    sweep: str
    few_ms: float
    first_ms: float
    last_ms: float
    rows_a_second: float
    """The rate of all slices of the many rows, including commits."""

    @property
    def ratio(self) -> float:
        return max(self.first_ms, self.last_ms) / self.few_ms


def main() -> int:
    options = _options()
    with open_stage() as stage:
        for name, due in (("few", _FEW), ("many", options.due)):
            stage.migrate(name)
            with psycopg.connect(stage.postgres.url(name), autocommit=True) as connection:
                connection.execute(_FILL.format(due=due).encode())
                connection.execute("VACUUM ANALYZE")
                connection.execute("CHECKPOINT")
        measured = asyncio.run(_measure(stage, options.due))
        for name in ("few", "many"):
            check_books(stage, name)
    targets = [
        Target(
            f"{one.sweep}: a slice with {options.due:,} due takes at most {_MOST:g} times as long as with {_FEW:,}",
            one.ratio <= _MOST,
        )
        for one in measured
    ]
    _report(options, measured, targets)
    return 0 if all(target.reached for target in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.expiry", description=__doc__)
    parser.add_argument("--due", type=int, default=200_000, help="due rows of each kind (default: 200000)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


async def _measure(stage: Stage, due: int) -> list[Slices]:
    async with (
        open_database(stage.settings("few"), "benchmark") as few,
        open_database(stage.settings("many"), "benchmark") as many,
    ):
        return [await _measure_sweep(one, few, many, due) for one in (UNPAID, HELD, HOLDS)]


async def _measure_sweep(sweep: Sweep[Any], few: Database, many: Database, due: int) -> Slices:
    of_few: list[float] = []
    of_many: list[float] = []
    few_last = many_last = None
    # Open connections and prepare statements before measuring.
    for database in (few, many):
        async with UnitOfWork(database.write) as uow:
            await take_slice(uow, sweep, None, _SLICE)
    # Alternately, so that other work on the machine affects both.
    for _ in range(_MEASURED):
        few_last = await _time_slice(sweep, few, few_last, of_few)
        many_last = await _time_slice(sweep, many, many_last, of_many)
    while many_last is not None:
        many_last = await _time_slice(sweep, many, many_last, of_many)
    full = of_many[: due // _SLICE]
    return Slices(sweep.name, min(of_few), min(full[:_MEASURED]), min(full[-_MEASURED:]), due / sum(of_many) * 1000)


async def _time_slice(sweep: Sweep[Any], database: Database, after: Any, times: list[float]) -> Any:
    started = time.perf_counter()
    async with UnitOfWork(database.write) as uow:
        taken = await take_slice(uow, sweep, after, _SLICE)
        await uow.commit()
    times.append((time.perf_counter() - started) * 1000)
    return taken.last


def _report(options: argparse.Namespace, measured: list[Slices], targets: list[Target]) -> None:
    if options.json:
        document = {
            "sweeps": [{**asdict(one), "ratio": one.ratio} for one in measured],
            "targets": [asdict(target) for target in targets],
        }
        print(json.dumps(document, indent=2))
        return
    table = Table("", f"ms, {_FEW:,} due", f"ms, {options.due:,} due: first", "last", "ratio", "rows/s")
    for column in table.columns[1:]:
        column.justify = "right"
    for one in measured:
        table.add_row(
            one.sweep,
            f"{one.few_ms:.1f}",
            f"{one.first_ms:.1f}",
            f"{one.last_ms:.1f}",
            f"{one.ratio:.2f}",
            f"{one.rows_a_second:,.0f}",
        )
    console = Console(width=150, highlight=False)
    console.print(f"A slice of {_SLICE} rows, with its commit", style="bold")
    console.print(table)
    for target in targets:
        console.print(f"{'reached' if target.reached else 'MISSED'}: {target.text}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
