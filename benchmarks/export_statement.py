"""The time and memory that exporting a long statement as CSV takes: `python -m benchmarks.export_statement`."""

import argparse
import sys
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

import psycopg

from benchmarks.load import Seen
from benchmarks.report import Measured, Target, report
from benchmarks.sessions import session_of
from benchmarks.shop import Shop, open_shop
from benchmarks.stage import Stage, check_books, open_stage, run_beside, running_api
from benchmarks.usage import Meter, peak_rss_mib
from services.api.tokens import Tokens
from services.local.embedded.ports import LOOPBACK

_MOST_MEMORY_MIB = 16.0

# Transfers of one credit back and forth, so that the books balance: every other entry reverses the previous one.
_FILL = """
    CREATE TEMP TABLE made AS
    SELECT gen_random_uuid() AS id, n, CASE n %% 2 WHEN 0 THEN mine.id ELSE other.id END AS debit,
        CASE n %% 2 WHEN 0 THEN other.id ELSE mine.id END AS credit, mine.id AS mine, other.id AS other
    FROM generate_series(1, %(entries)s) AS n, accounts AS mine, accounts AS other
    WHERE mine.user_id = %(user)s AND other.user_id = %(other)s;
    INSERT INTO transfers
        (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, note, resolved_at)
    SELECT id, debit, credit, 1, 'transfer', 'posted', 1, 'invoice ' || n, now() FROM made ORDER BY n;
    INSERT INTO entries (account_id, version, transfer_id, amount, balance)
    SELECT mine, n + 1, id, CASE n %% 2 WHEN 0 THEN -1 ELSE 1 END, 10000000 + n %% 2 FROM made
    UNION ALL SELECT other, n + 1, id, CASE n %% 2 WHEN 0 THEN 1 ELSE -1 END, 10000000 - n %% 2 FROM made;
    UPDATE accounts SET version = 1 + %(entries)s,
        posted = posted + CASE WHEN user_id = %(user)s THEN 1 ELSE -1 END * (%(entries)s %% 2)
    WHERE user_id IN (%(user)s, %(other)s);
"""


def main() -> int:
    options = _options()
    with open_stage() as stage:
        stage.migrate("bank")
        url = stage.postgres.url("bank")
        bank = open_shop(url, 2)
        with psycopg.ClientCursor(psycopg.connect(url, autocommit=True)) as cursor:
            values = {"entries": options.entries, "user": bank.buyer_ids[0], "other": bank.buyer_ids[1]}
            cursor.execute(_FILL.encode(), values)
            cursor.execute("VACUUM ANALYZE entries, transfers")
            cursor.connection.close()
        check_books(stage, "bank")
        job = {"database_url": url, "postgres_pid": stage.postgres_pid, "user_id": bank.buyer_ids[0]}
        plain = measured("plain asyncpg, a cursor", run_beside("benchmarks.plain_export", job))
        api, growth = _over_http(stage, bank)
    lines = options.entries + 1
    complete = plain.done == api.done == lines
    targets = [
        Target(f"all {lines:,} lines, to plain asyncpg and over HTTP", complete),
        Target(f"the API grows by less than {_MOST_MEMORY_MIB:.0f} MiB ({growth:.1f})", growth < _MOST_MEMORY_MIB),
    ]
    notes = ["p50 is until the first piece, p99 until the last, both in milliseconds."]
    report(f"One statement of {lines:,} entries as CSV", [plain, api], targets, notes, as_json=options.json)
    return 0 if all(target.reached for target in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export_statement", description=__doc__)
    parser.add_argument("--entries", type=int, default=200_000, help="entries in the statement (default: 200000)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def _over_http(stage: Stage, bank: Shop) -> tuple[Measured, float]:
    # What a process loads for its first request is not part of the statement's cost.
    warm, path = "/v1/accounts/me/statement.csv?filter=kind:eq:top_up", "/v1/accounts/me/statement.csv"
    with running_api(stage, stage.settings("bank")) as (pid, port):
        export = Export(
            stage, pid, port, Tokens.from_settings(stage.settings("bank")).make(session_of(bank.buyer_ids[0]))
        )
        export(warm)
        before = peak_rss_mib(pid)
        seen = export(path)
    # The header line is not an entry.
    seen.replies -= 1
    return measured("Waybill over HTTP", {name: getattr(seen, name) for name in Seen.__slots__}), (
        seen.peak_rss_mib - before
    )


@dataclass(frozen=True, slots=True)
class Export:
    """Reads exports of a running API over HTTP, and measures them. Their lines are counted as replies."""

    stage: Stage
    pid: int
    port: int
    token: str

    def __call__(self, path: str) -> Seen:
        request = urllib.request.Request(f"http://{LOOPBACK}:{self.port}{path}")
        request.add_header("Authorization", f"Bearer {self.token}")
        seen, meter = Seen(), Meter(self.pid, self.stage.postgres_pid)
        meter.start()
        started = time.perf_counter()
        with urllib.request.urlopen(request) as reply:
            while piece := reply.read(65_536):
                seen.latencies[1:] = [time.perf_counter() - started]
                seen.latencies = seen.latencies or [time.perf_counter() - started]
                seen.replies += piece.count(b"\n")
        meter.stop()
        seen.read(meter, self.pid)
        return seen


def measured(name: str, seen: dict[str, Any]) -> Measured:
    lines = max(1, seen["replies"])
    others = seen["machine_cpu"] - seen["cpu"] - seen["postgres_cpu"]
    return Measured(
        name=name,
        done=seen["replies"],
        seconds=seen["seconds"],
        cpu_ms=seen["cpu"] * 1000 / lines,
        postgres_cpu_ms=seen["postgres_cpu"] * 1000 / lines,
        others_cpu=others / seen["seconds"],
        p50_ms=seen["latencies"][0] * 1000,
        p99_ms=seen["latencies"][-1] * 1000,
        peak_rss_mib=seen["peak_rss_mib"],
        unit="lines",
    )


if __name__ == "__main__":
    sys.exit(main())
