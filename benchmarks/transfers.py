"""Transfers over HTTP, one by one and in batches, and the cost of a hot seller: `python -m benchmarks.transfers`."""

import argparse
import json
import random
import sys
from typing import Any

import psycopg

from benchmarks.process_orders import run_worker
from benchmarks.report import Measured, Target, percentile, report
from benchmarks.shop import Shop, open_shop, place_waiting
from benchmarks.stage import Stage, check_books, open_stage, run_beside, running_api
from services.api.tokens import Tokens
from services.local.embedded.ports import LOOPBACK
from services.settings import Settings

_DIFFERENT_TRANSFERS = 5000
_DIFFERENT_BATCHES = 50
_BATCH = 500
_BATCH_CLIENTS = 4
_WARMUP_SECONDS = 2.0
_SPREAD_SELLERS = 1000
_WANTED_SINGLE = 600.0
_WANTED_BATCHED = 4000.0
_WANTED_HOT = 0.9


def main() -> int:
    options = _options()
    with open_stage() as stage:
        stage.migrate("bank")
        bank = open_shop(stage.postgres.url("bank"), options.users)
        job = {"seconds": options.seconds, "warmup": _WARMUP_SECONDS, "postgres_pid": stage.postgres_pid}
        plain = _plain(stage, {**job, "clients": options.clients}, bank)
        single = _over_http(stage, "Waybill, one by one", {**job, "clients": options.clients}, bank, 1)
        batched = _over_http(stage, f"Waybill, {_BATCH} a batch", {**job, "clients": _BATCH_CLIENTS}, bank, _BATCH)
        spread = _orders(stage, f"worker, {_SPREAD_SELLERS:,} sellers", options.orders, _SPREAD_SELLERS)
        hot = _orders(stage, "worker, one hot seller", options.orders, 1)
    targets = [
        Target(f"at least {_WANTED_SINGLE:.0f} transfers/s one by one", single.rate >= _WANTED_SINGLE),
        Target(f"at least {_WANTED_BATCHED:,.0f} transfers/s in batches", batched.rate >= _WANTED_BATCHED),
        Target(f"a hot seller at least {_WANTED_HOT} of spread ones", hot.rate >= _WANTED_HOT * spread.rate),
    ]
    report(
        f"Transfers by one API process, {options.clients} at a time ({_BATCH_CLIENTS} batches), for "
        f"{options.seconds:g} s; {options.orders:,} orders of one line by one worker",
        [plain, single, batched, spread, hot],
        targets,
        [
            "p50 and p99 are of one request, or of one batch of the worker. Orders are compared with spread sellers.",
            "The books of every database were recounted afterwards and balance.",
        ],
        as_json=options.json,
    )
    return 0 if all(target.reached for target in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="measured seconds per run over HTTP (default: 10)")
    parser.add_argument("--clients", type=int, default=16, help="concurrent single transfers (default: 16)")
    parser.add_argument("--users", type=int, default=2000, help="different senders and recipients (default: 2000)")
    parser.add_argument("--orders", type=int, default=20_000, help="orders that wait for the worker (default: 20000)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def _plain(stage: Stage, job: dict[str, Any], bank: Shop) -> Measured:
    stage.clone("bank", "plain")
    url = stage.postgres.url("plain")
    with psycopg.connect(url) as connection:
        accounts = connection.execute("SELECT user_id, id FROM accounts WHERE user_id IS NOT NULL").fetchall()
    account_of: dict[int, int] = dict(accounts)
    chance = random.Random(1)
    transfers = []
    for _ in range(_DIFFERENT_TRANSFERS):
        sender, recipient = chance.sample(bank.buyer_ids, 2)
        transfers.append((account_of[sender], account_of[recipient], _amount(chance)))
    seen = run_beside("benchmarks.plain_transfer", {**job, "database_url": url, "transfers": transfers})
    check_books(stage, "plain")
    return _measured("plain asyncpg", seen, 1)


def _over_http(stage: Stage, name: str, job: dict[str, Any], bank: Shop, size: int) -> Measured:
    database = f"service_{size}"
    stage.clone("bank", database)
    settings = stage.settings(database, database_pool_size=16, database_max_overflow=0)
    with running_api(stage, settings) as (pid, port):
        requests = _requests(settings, bank, size)
        target = {"pid": pid, "host": LOOPBACK, "port": port, "requests": requests}
        seen = run_beside("benchmarks.load", {**job, **target, "status": "201" if size == 1 else "200"})
    if seen["wrong"]:
        sys.exit(f"not every transfer was accepted: {seen['wrong']}\n{seen['example']}\n{stage.log('api')}")
    check_books(stage, database)
    _check_all_posted(stage, database, seen["replies"] * size)
    return _measured(name, seen, size)


def _requests(settings: Settings, bank: Shop, size: int) -> list[tuple[str, str]]:
    """The parts before and after the key."""
    tokens = Tokens.from_settings(settings)
    path = "/v1/transfers" if size == 1 else "/v1/transfers/batch"
    chance = random.Random(1)
    requests = []
    for _ in range(_DIFFERENT_TRANSFERS if size == 1 else _DIFFERENT_BATCHES):
        sender, *recipients = chance.sample(bank.buyer_ids, size + 1)
        items = [{"to_user_id": to, "amount": _amount(chance), "note": f"number {to}"} for to in recipients]
        body = json.dumps(items[0] if size == 1 else {"mode": "independent", "transfers": items})
        head = (
            f"POST {path} HTTP/1.1\r\nHost: waybill\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {tokens.make(sender)}\r\nContent-Length: {len(body)}\r\nIdempotency-Key: "
        )
        requests.append((head, f"\r\n\r\n{body}"))
    return requests


def _amount(chance: random.Random) -> str:
    return f"{chance.randint(1, 999) / 100:.2f}"


def _check_all_posted(stage: Stage, database: str, at_least: int) -> None:
    """Check that all transfers were posted: a batch is answered with 200 even if some failed."""
    with psycopg.connect(stage.postgres.url(database)) as connection:
        row = connection.execute("SELECT count(*) FROM transfers WHERE kind = 'transfer'").fetchone()
    if row is None or row[0] < at_least:
        sys.exit(f"only {row} of {at_least} transfers were posted in {database}")


def _orders(stage: Stage, name: str, orders: int, sellers: int) -> Measured:
    """One line per order, so that each order pays exactly one seller."""
    database = f"orders_{sellers}"
    stage.migrate(database)
    url = stage.postgres.url(database)
    place_waiting(url, open_shop(url, 200, sellers), orders, items=1)
    # Everything is written to disk before the worker's time is measured.
    stage.clone(database, f"{database}_run")
    return run_worker(stage, f"{database}_run", name, orders, 200)


def _measured(name: str, seen: dict[str, Any], size: int) -> Measured:
    done = seen["replies"] * size
    latencies = sorted(seen["latencies"])
    others = seen["machine_cpu"] - seen["cpu"] - seen["postgres_cpu"] - seen["own_cpu"]
    return Measured(
        name=name,
        done=done,
        seconds=seen["seconds"],
        cpu_ms=seen["cpu"] * 1000 / done,
        postgres_cpu_ms=seen["postgres_cpu"] * 1000 / done,
        others_cpu=others / seen["seconds"],
        p50_ms=percentile(latencies, 0.50) * 1000,
        p99_ms=percentile(latencies, 0.99) * 1000,
        peak_rss_mib=seen["peak_rss_mib"],
        unit="transfers",
    )


if __name__ == "__main__":
    sys.exit(main())
