"""Transfers over HTTP, one by one and in batches, and the cost of a hot seller: `python -m benchmarks.transfers`."""

import argparse
import sys

import psycopg

from benchmarks.over_http import batch_requests, measured, plain_transfers, send, transfer_requests
from benchmarks.process_orders import run_worker
from benchmarks.report import Measured, Target, report
from benchmarks.shop import open_shop, place_waiting
from benchmarks.stage import Stage, open_stage

_DIFFERENT_BATCHES = 50
_BATCH = 500
_BATCH_CLIENTS = 4
_SPREAD_SELLERS = 1000
_WANTED_SINGLE = 600.0
_WANTED_BATCHED = 4000.0
_WANTED_HOT = 0.9


def main() -> int:
    options = _options()
    with open_stage() as stage:
        stage.migrate("bank")
        bank = open_shop(stage.postgres.url("bank"), options.users)
        job = {"clients": options.clients, "seconds": options.seconds}
        plain = plain_transfers(stage, "bank", job, bank)
        one_by_one = send(
            stage, "bank", job, lambda settings: transfer_requests(settings, bank), check=_check_all_posted
        )
        in_batches = send(
            stage,
            "bank",
            {**job, "clients": _BATCH_CLIENTS},
            lambda settings: batch_requests(settings, bank, _DIFFERENT_BATCHES, _BATCH),
            check=lambda url, replies: _check_all_posted(url, replies * _BATCH),
        )
        single = measured("Waybill, one by one", one_by_one, unit="transfers")
        batched = measured(f"Waybill, {_BATCH} a batch", in_batches, _BATCH, "transfers")
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


def _check_all_posted(url: str, at_least: int) -> None:
    """Check that all transfers were posted: a batch is answered with 200 even if some failed."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM transfers WHERE kind = 'transfer'").fetchone()
    if row is None or row[0] < at_least:
        sys.exit(f"only {row} of {at_least} transfers were posted")


def _orders(stage: Stage, name: str, orders: int, sellers: int) -> Measured:
    """One line per order, so that each order pays exactly one seller."""
    database = f"orders_{sellers}"
    stage.migrate(database)
    url = stage.postgres.url(database)
    place_waiting(url, open_shop(url, 200, sellers), orders, items=1)
    # Everything is written to disk before the worker's time is measured.
    stage.clone(database, f"{database}_run")
    return run_worker(stage, f"{database}_run", name, orders, 200)


if __name__ == "__main__":
    sys.exit(main())
