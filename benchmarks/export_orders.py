"""How fast orders are exported, and what it costs: `python -m benchmarks.export_orders`."""

import argparse
import sys

import psycopg

from benchmarks.export_statement import Export, measured
from benchmarks.load import Seen
from benchmarks.report import Target, report
from benchmarks.sessions import session_of
from benchmarks.shop import open_shop
from benchmarks.stage import open_stage, running_api
from benchmarks.usage import peak_rss_mib
from services.api.tokens import Tokens
from services.exports import Format

_MOST_MEMORY_MIB = 16.0
_LINES_A_SECOND = 30_000

_FILL = """
    INSERT INTO orders (id, buyer_id, status, total, item_count, reference)
    SELECT uuidv7(n * interval '1 millisecond' - interval '1 day'), %(user)s, 'fulfilled', 12.50, 1, 'invoice ' || n
    FROM generate_series(1, %(orders)s) AS n
"""


def main() -> int:
    options = _options()
    with open_stage() as stage:
        stage.migrate("shop")
        url = stage.postgres.url("shop")
        buyer_id = open_shop(url, 2).buyer_ids[0]
        with psycopg.ClientCursor(psycopg.connect(url, autocommit=True)) as cursor:
            cursor.execute(_FILL.encode(), {"orders": options.orders, "user": buyer_id})
            cursor.execute("VACUUM ANALYZE orders")
            cursor.connection.close()
        settings = stage.settings("shop")
        seen, growth = {}, {}
        with running_api(stage, settings) as (pid, port):
            export = Export(stage, pid, port, Tokens.from_settings(settings).make(session_of(buyer_id)))
            for form in Format:
                # What a process loads for its first request is not part of the cost.
                export(f"/v1/orders.{form.value}?filter=status:eq:pending")
                before = peak_rss_mib(pid)
                seen[form] = export(f"/v1/orders.{form.value}")
                growth[form] = peak_rss_mib(pid) - before
    # The header line is not an order.
    seen[Format.csv].replies -= 1
    rows = [measured(form.value, {name: getattr(one, name) for name in Seen.__slots__}) for form, one in seen.items()]
    most = max(growth.values())
    slowest = min(row.done / row.seconds for row in rows)
    targets = [
        Target(f"all {options.orders:,} orders in both", all(row.done == options.orders for row in rows)),
        Target(f"the API grows by less than {_MOST_MEMORY_MIB:.0f} MiB ({most:.1f})", most < _MOST_MEMORY_MIB),
        Target(f"at least {_LINES_A_SECOND:,} lines/s ({slowest:,.0f})", slowest >= _LINES_A_SECOND),
    ]
    notes = ["p50 is until the first piece, p99 until the last, both in milliseconds."]
    report(f"{options.orders:,} orders of one buyer", rows, targets, notes, as_json=options.json)
    return 0 if all(target.reached for target in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export_orders", description=__doc__)
    parser.add_argument("--orders", type=int, default=200_000, help="orders of the buyer (default: 200000)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
