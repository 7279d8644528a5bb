"""How many orders one API process accepts over HTTP: `python -m benchmarks.place_orders`."""

import argparse
import sys

from benchmarks.over_http import measured, order_requests, plain_orders, send, some_orders
from benchmarks.report import Target, report
from benchmarks.shop import EARLIER_ORDERS, open_shop, place_waiting
from benchmarks.stage import open_stage

_WANTED_RATE = 500.0


def main() -> int:
    options = _options()
    with open_stage() as stage:
        stage.migrate("shop")
        shop = open_shop(stage.postgres.url("shop"), options.buyers)
        # A shop with a history, so that the planner never has to guess from an empty table.
        place_waiting(stage.postgres.url("shop"), shop, EARLIER_ORDERS, options.items)
        orders = some_orders(shop, options.items)
        job = {"clients": options.clients, "seconds": options.seconds}
        plain = plain_orders(stage, "shop", job, orders)
        seen = send(stage, "shop", job, lambda settings: order_requests(settings, orders))
    api, share = measured("Waybill over HTTP", seen), seen["own_cpu"] / seen["seconds"]
    report(
        f"Placing orders of {options.items} items, {options.clients} at a time, for {options.seconds:g} s",
        [plain, api],
        [Target(f"at least {_WANTED_RATE:.0f} orders/s for one API process", api.rate >= _WANTED_RATE)],
        [f"The load generator used {share:.0%} of one CPU. p50 and p99 are of one order, as the client sees it."],
        as_json=options.json,
    )
    return 0 if api.rate >= _WANTED_RATE else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.place_orders", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="measured seconds per run (default: 10)")
    parser.add_argument("--clients", type=int, default=16, help="concurrent requests (default: 16)")
    parser.add_argument("--items", type=int, default=3, help="lines per order (default: 3)")
    parser.add_argument("--buyers", type=int, default=200, help="different buyers (default: 200)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
