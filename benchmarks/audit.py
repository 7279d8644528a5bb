"""The time and memory that an audit of a large ledger takes: `python -m benchmarks.audit`."""

import argparse
import asyncio
import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import asyncpg
import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.report import Target
from benchmarks.stage import Stage, check_books, open_stage
from benchmarks.usage import cpu_seconds, family_cpu_seconds, peak_rss_mib

_MOST_SECONDS_A_MILLION = 30.0
_MOST_MEMORY_MIB = 200.0

# Every fifth transfer pays for an order; the top-ups are large enough for all transfers. The first hundred users
# sell the products, and the others buy them.
_FILL = """
    SET session_replication_role = replica;
    INSERT INTO users (email, full_name, hashed_password)
    SELECT format('user%s@example.com', n), format('User %s', n), '!' FROM generate_series(1, {accounts}) AS n;
    INSERT INTO accounts (user_id) SELECT id FROM users ORDER BY id;
    INSERT INTO categories (name) VALUES ('Everything');
    INSERT INTO products (seller_id, category_id, sku, name, price)
    SELECT (SELECT min(id) FROM users) + n % 100, (SELECT id FROM categories), format('SKU-%s', n),
        format('Product number %s', n), 1 + n % 20 + 0.25 FROM generate_series(1, 1000) AS n;

    CREATE TEMP TABLE move AS
    SELECT n, gen_random_uuid() AS id, NULL::uuid AS order_id,
        (SELECT id FROM accounts WHERE system_name = 'issuance') AS debit, account.id AS credit,
        10000000.00 AS amount, 'top_up' AS kind
    FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM accounts WHERE user_id IS NOT NULL) AS account;
    INSERT INTO move
    SELECT n, gen_random_uuid(), CASE WHEN n % 5 = 0 THEN gen_random_uuid() END,
        account.first + CASE WHEN n % 5 = 0 THEN 100 + n * 7919 % ({accounts} - 100) ELSE n * 7919 % {accounts} END,
        account.first + CASE WHEN n % 5 = 0 THEN (n % 1000 + 1) % 100
            ELSE (n * 7919 + 1 + n % ({accounts} - 1)) % {accounts} END,
        1 + n % 5000 / 100.0, CASE WHEN n % 5 = 0 THEN 'order' ELSE 'transfer' END
    FROM generate_series({accounts} + 1::bigint, {transfers}) AS n,
        (SELECT min(id) AS first FROM accounts WHERE user_id IS NOT NULL) AS account;

    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, order_id,
        resolved_at)
    SELECT id, debit, credit, amount, kind, 'posted', amount, order_id, now() FROM move ORDER BY n;
    INSERT INTO entries (account_id, version, transfer_id, amount, balance)
    SELECT account_id, row_number() OVER running, id, side.amount, sum(side.amount) OVER running
    FROM move, LATERAL (VALUES (debit, -amount), (credit, amount)) AS side(account_id, amount)
    WINDOW running AS (PARTITION BY account_id ORDER BY n ROWS UNBOUNDED PRECEDING);
    UPDATE accounts SET posted = entry.posted, version = entry.version FROM (
        SELECT account_id, sum(amount) AS posted, max(version) AS version FROM entries GROUP BY account_id
    ) AS entry WHERE entry.account_id = accounts.id;

    INSERT INTO orders (id, buyer_id, status, total, item_count)
    SELECT order_id, user_id, 'fulfilled', amount, 2 FROM move JOIN accounts ON accounts.id = debit
    WHERE order_id IS NOT NULL;
    INSERT INTO order_items (order_id, line, product_id, quantity, unit_price)
    SELECT order_id, line, (SELECT min(id) FROM products) + n % 1000, 1,
        CASE line WHEN 1 THEN 0.50 ELSE amount - 0.50 END
    FROM move, generate_series(1, 2) AS line WHERE order_id IS NOT NULL;
    INSERT INTO order_transitions (order_id, from_status, to_status)
    SELECT order_id, from_status, to_status
    FROM move, LATERAL (VALUES (1, NULL, 'pending'), (2, 'pending', 'confirmed'), (3, 'confirmed', 'fulfilled'))
        AS step(number, from_status, to_status)
    WHERE order_id IS NOT NULL ORDER BY n, number;
    INSERT INTO stock_movements (product_id, kind, pieces) SELECT id, 'opening', 1000000 FROM products;
    INSERT INTO stock_movements (product_id, kind, order_id, pieces)
    SELECT (SELECT min(id) FROM products) + n % 1000, 'shipped', order_id, -2 FROM move
    WHERE order_id IS NOT NULL ORDER BY n;
    INSERT INTO inventory (product_id, on_hand)
    SELECT product_id, sum(pieces) FROM stock_movements GROUP BY product_id;

    CREATE FUNCTION pg_temp.id_of(at timestamptz, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
        SELECT CAST(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3)
            || '8' || substr(md5(n::text), 4, 15) AS uuid)
    $$;
    INSERT INTO events (id, type, version, aggregate, payload)
    SELECT pg_temp.id_of(now(), n * 3 + number), type, 1, aggregate, payload
    FROM move JOIN accounts ON accounts.id = debit CROSS JOIN LATERAL (VALUES
        (0, order_id IS NULL, 'credits.moved', 'transfer/' || move.id, jsonb_build_object('transfer_id', move.id,
            'kind', kind, 'from_account_id', debit, 'to_account_id', credit, 'amount', round(amount, 2)::text)),
        (0, order_id IS NOT NULL, 'order.placed', 'order/' || order_id, jsonb_build_object(
            'order_id', order_id, 'buyer_id', user_id, 'total', round(amount, 2)::text)),
        (1, order_id IS NOT NULL, 'order.confirmed', 'order/' || order_id, jsonb_build_object(
            'order_id', order_id, 'total', round(amount, 2)::text)),
        (2, order_id IS NOT NULL, 'order.fulfilled', 'order/' || order_id, jsonb_build_object('order_id', order_id))
    ) AS event(number, happened, type, aggregate, payload)
    WHERE happened ORDER BY n;

    -- The stored reply for each order, transfer and top-up, as if all were from the same day.
    INSERT INTO idempotency_keys (caller_id, method, path, key, fingerprint, status, headers, body)
    SELECT user_id, 'POST', CASE WHEN order_id IS NULL THEN '/v1/transfers' ELSE '/v1/orders' END, move.id::text,
        '', 201, '{{}}', convert_to(CASE WHEN order_id IS NULL
            THEN json_build_object('id', move.id, 'kind', kind, 'state', 'posted', 'amount', round(amount, 2)::text,
                'note', '', 'created_at', now(), 'dry_run', false)
            ELSE json_build_object('reference', NULL, 'id', order_id, 'status', 'pending',
                'total', round(amount, 2)::text, 'refunded', '0.00', 'item_count', 2,
                'version', 1, 'created_at', now(), 'updated_at', now(),
                'buyer', json_build_object('id', user_id, 'full_name', format('User %s', user_id)),
                'items', (SELECT json_agg(json_build_object('product_id', 1 + n % 1000, 'quantity', 1, 'line', line,
                    'returned', 0, 'unit_price', '0.50', 'line_total', '0.50', 'product',
                    json_build_object('id', 1 + n % 1000, 'name', 'Product number', 'sku', 'SKU', 'seller_id', 1)))
                    FROM generate_series(1, 2) AS line))
            END::text, 'UTF8')
    FROM move JOIN accounts ON accounts.id = CASE kind WHEN 'top_up' THEN credit ELSE debit END;
"""

# The minimum: read each table once, and compare balances with sums.
_PLAIN = """
    SELECT (SELECT sum(amount) FROM entries), (SELECT sum(amount) FROM transfers), (SELECT sum(total) FROM orders),
        (SELECT sum(quantity * unit_price) FROM order_items), (SELECT count(*) FROM order_transitions),
        (SELECT count(*) FROM accounts JOIN (
            SELECT account_id, sum(amount) AS amount FROM entries GROUP BY account_id
        ) AS entered ON account_id = id WHERE posted <> entered.amount)
"""

_SPILLED = "SELECT temp_bytes FROM pg_stat_database WHERE datname = current_database()"
_ROWS = "SELECT sum(n_live_tup)::bigint FROM pg_stat_user_tables"


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds, CPU seconds of the process and of PostgreSQL, the process's peak RSS and PostgreSQL's spill to disk."""

    name: str
    rows: int
    seconds: float
    cpu_seconds: float
    postgres_cpu_seconds: float
    peak_rss_mib: float | None
    spilled_mib: float


def main() -> int:
    options = _options()
    with open_stage() as stage:
        stage.migrate("ledger")
        _fill(stage, options)
        check_books(stage, "ledger")
        plain = asyncio.run(_plain(stage))
        audit = _audit(stage)
    million = options.entries / 1_000_000
    targets = [
        Target(
            f"an audit of {options.entries:,} entries in under {_MOST_SECONDS_A_MILLION * million:g} s",
            audit.seconds < _MOST_SECONDS_A_MILLION * million,
        ),
        Target(
            f"memory of the audit's process below {_MOST_MEMORY_MIB:.0f} MiB",
            audit.peak_rss_mib is not None and audit.peak_rss_mib < _MOST_MEMORY_MIB,
        ),
    ]
    _report(options, [plain, audit], targets)
    return 0 if all(target.reached for target in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000, help="entries in the ledger (default: 1000000)")
    parser.add_argument("--accounts", type=int, default=10_000, help="accounts with a user (default: 10000)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def _fill(stage: Stage, options: argparse.Namespace) -> None:
    with psycopg.connect(stage.postgres.url("ledger"), autocommit=True) as connection:
        filled = _FILL.format(accounts=options.accounts, transfers=options.entries // 2)
        connection.execute(filled.encode())
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


async def _plain(stage: Stage) -> Run:
    connection = await asyncpg.connect(stage.postgres.url("ledger"))
    try:
        before = await connection.fetchval(_SPILLED)
        started, cpu, server = time.perf_counter(), cpu_seconds(os.getpid()), family_cpu_seconds(stage.postgres_pid)
        await connection.fetch(_PLAIN)
        seconds = time.perf_counter() - started
        cpu, server = cpu_seconds(os.getpid()) - cpu, family_cpu_seconds(stage.postgres_pid) - server
        rows = await connection.fetchval(_ROWS)
        await connection.execute("SELECT pg_stat_force_next_flush()")
        spilled = await connection.fetchval(_SPILLED) - before
    finally:
        await connection.close()
    return Run("plain asyncpg, sums only", rows, seconds, cpu, server, None, spilled / 2**20)


def _audit(stage: Stage) -> Run:
    url = stage.postgres.url("ledger")
    before, server, started = _spilled(url), family_cpu_seconds(stage.postgres_pid), time.perf_counter()
    cpu, peak = 0.0, 0.0
    command = ["-m", "services.cli", "ledger", "audit", "--json"]
    with stage.process("audit", command, stage.settings("ledger")) as process:
        while process.poll() is None:
            # The last values count: nothing can be read once the process has ended.
            with suppress(OSError, ValueError):
                cpu, peak = cpu_seconds(process.pid), peak_rss_mib(process.pid)
            time.sleep(0.01)
        wall = time.perf_counter() - started
        if process.returncode != 0:
            sys.exit(f"the audit found differences or failed:\n{stage.log('audit')}")
    said = json.loads((stage.folder / "audit.log").read_text())
    return Run(
        name=f"waybill ledger audit, {wall - said['seconds']:.1f} s of starting included",
        rows=said["rows_checked"],
        seconds=wall,
        cpu_seconds=cpu,
        postgres_cpu_seconds=family_cpu_seconds(stage.postgres_pid) - server,
        peak_rss_mib=peak,
        spilled_mib=(_spilled(url) - before) / 2**20,
    )


def _spilled(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(_SPILLED).fetchone()
    assert found is not None
    return int(found[0])


def _report(options: argparse.Namespace, runs: list[Run], targets: list[Target]) -> None:
    baseline = runs[0]
    if options.json:
        document: dict[str, Any] = {
            "runs": [{**asdict(run), "ratio": run.seconds / baseline.seconds} for run in runs],
            "targets": [asdict(target) for target in targets],
        }
        print(json.dumps(document, indent=2))
        return
    headings = ("seconds", "ratio", "CPU s", "PostgreSQL CPU s", "ratio", "peak RSS MiB", "spilled to disk MiB")
    table = Table("", *headings)
    for column in table.columns[1:]:
        column.justify = "right"
    for run in runs:
        table.add_row(
            run.name,
            f"{run.seconds:.2f}",
            f"{run.seconds / baseline.seconds:.1f}",
            f"{run.cpu_seconds:.2f}",
            f"{run.postgres_cpu_seconds:.2f}",
            f"{run.postgres_cpu_seconds / baseline.postgres_cpu_seconds:.1f}",
            "" if run.peak_rss_mib is None else f"{run.peak_rss_mib:.0f}",
            f"{run.spilled_mib:.0f}",
        )
    console = Console(width=150, highlight=False)
    console.print(f"An audit of {options.entries:,} entries, {runs[1].rows:,} rows in all", style="bold")
    console.print(table)
    for target in targets:
        console.print(f"{'reached' if target.reached else 'MISSED'}: {target.text}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
