"""The console's pages, their JSON twins and the commands, in the middle of an incident: `python -m benchmarks.console`.

The target is 100 ms each. What a page reads must not grow with the data either: the blocks that its statements touch
are compared with those in a database a tenth the size.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from benchmarks.console import measuring, reads, rows
from benchmarks.console.measuring import Database, Read
from benchmarks.report import machine
from benchmarks.stage import Stage, open_stage
from benchmarks.usage import machine_cpu_seconds

MOST_MS = 100.0
GROWS = 2.0
"""Blocks that grow by more than this while the data grows tenfold. An index that is a level deeper adds a third."""
_FEW_BLOCKS = 200
"""Below this, growth says nothing."""
_SLOWEST = 40


def main() -> int:
    options = _options()
    scale = rows.Scale.of(options.orders)
    started, busy = time.perf_counter(), machine_cpu_seconds()
    with open_stage(
        shared_preload_libraries="pg_stat_statements", **{"pg_stat_statements.track_planning": "on"}
    ) as stage:
        small = measure(stage, "small", rows.Scale.of(max(500, options.orders // 10)), options.rounds)
        large = measure(stage, "large", scale, options.rounds)
    cpus = (machine_cpu_seconds() - busy) / (time.perf_counter() - started)
    before = {one.name: one for one in small}
    found = sorted(((one, before[one.name]) for one in large), key=lambda pair: -pair[0].fastest)
    report(scale, found, cpus, as_json=options.json, everything=options.all)
    return 1 if any(is_slow(one) or grows(one, base) for one, base in found) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.console", description=__doc__)
    parser.add_argument(
        "--orders", type=int, default=1_000_000, help="orders; ten times as many events (default: 1000000)"
    )
    parser.add_argument("--quick", action="store_const", const=20_000, dest="orders", help="20,000 orders")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured (default: 7)")
    parser.add_argument("--all", action="store_true", help="print every read, not only the slowest ones")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def measure(stage: Stage, name: str, scale: rows.Scale, rounds: int) -> list[Read]:
    """Fill a database of this scale, measure every read, and drop it."""
    stage.migrate(name)
    started = time.perf_counter()
    rows.fill(stage.postgres.url(name), scale)
    print(f"{name}: filled in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    found = measure_filled(stage, name, scale, rounds)
    stage.drop(name)
    return found


def measure_filled(stage: Stage, name: str, scale: rows.Scale, rounds: int) -> list[Read]:
    """Measure every read."""
    settings = stage.settings(name, database_statement_timeout=30, database_transaction_timeout=60)
    database = Database(stage.postgres.url(name))
    names = measuring.names_of(database, scale)
    asks = [*reads.pages(), *reads.twins()]
    found = [
        *measuring.requests(stage, settings, database, names, rounds, asks),
        *measuring.commands(settings, database, names, rounds),
    ]
    database.connection.close()
    return found


def is_slow(one: Read) -> bool:
    """Whether it misses the target. The start of Python is not counted: `whole` shows it."""
    return one.fastest > MOST_MS


def grows(one: Read, base: Read) -> bool:
    """Whether it reads more in a larger database."""
    return one.blocks > _FEW_BLOCKS and one.blocks > GROWS * base.blocks


def report(
    scale: rows.Scale, found: Sequence[tuple[Read, Read]], cpus: float, *, as_json: bool, everything: bool
) -> None:
    """Print the slowest reads, and all that miss the target; `cpus` were busy on the whole machine meanwhile."""
    if as_json:
        reads_ = [{**asdict(one), "small": asdict(base)} for one, base in found]
        document = {"machine": machine(), "busy_cpus": cpus, "scale": asdict(scale), "reads": reads_}
        print(json.dumps(document, indent=2))
        return
    console = Console(width=190, highlight=False)
    console.print(
        f"{len(found)} reads with {scale.events:,} events, {scale.orders:,} orders, {scale.waiting:,} events that wait "
        f"and {scale.dead:,} dead letters; {cpus:.1f} CPUs were busy on the machine",
        style="bold",
    )
    headings = (
        "first ms",
        "fastest ms",
        "median ms",
        "longest ms",
        "PostgreSQL ms",
        "blocks",
        "a tenth of the data",
        "ratio",
        "process CPU ms",
    )
    table = Table("", *headings)
    for column in table.columns[1:]:
        column.justify = "right"
    for number, (one, base) in enumerate(found):
        if everything or number < _SLOWEST or is_slow(one) or grows(one, base):
            table.add_row(*_line(one, base))
    console.print(table)
    slow = sum(is_slow(one) for one, _ in found)
    growing = sum(grows(one, base) for one, base in found)
    console.print(f"{'MISSED' if slow else 'reached'}: each takes at most {MOST_MS:g} ms ({slow} take longer)")
    console.print(f"{'MISSED' if growing else 'reached'}: none reads more in a larger database ({growing} do)")


def _line(one: Read, base: Read) -> list[str]:
    times = [f"{value:.1f}" for value in (one.first, one.fastest, one.median, one.longest, one.worked)]
    ratio = f"{one.blocks / max(base.blocks, 1):.2f}"
    whole = "" if one.whole is None else f"{one.whole:.0f}"
    mark = (" SLOW" if is_slow(one) else "") + (" GROWS" if grows(one, base) else "")
    return [one.name + mark, *times, f"{one.blocks:,}", f"{base.blocks:,}", ratio, whole]


if __name__ == "__main__":
    sys.exit(main())
