"""The performance and cost of the outbox engine: `python -m benchmarks.outbox`."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks.outbox import (
    backlog,
    hot,
    idle,
    latency,
    months,
    orders,
    peers,
    scaling,
    snapshot,
    trivial,
    types,
    writes,
)
from benchmarks.outbox.bench import Bench
from benchmarks.outbox.sizes import FULL, FULL_GIB, QUICK, QUICK_GIB
from benchmarks.outbox.table import Line, document, show, tally
from benchmarks.scenarios import add_only, timed
from benchmarks.stage import open_stage

_SCENARIOS: dict[str, Callable[[Bench], list[Line]]] = {
    "trivial": trivial.measure,
    "peers": peers.measure,
    "orders": orders.measure,
    "latency": latency.measure,
    "idle": idle.measure,
    "hot": hot.measure_hot,
    "retry": hot.measure_retry,
    "scaling": scaling.measure,
    "types": types.measure,
    "writes": writes.measure,
    "months": months.measure,
    "snapshot": snapshot.measure,
    "backlog": backlog.measure,
}


def main() -> int:
    options = _options()
    # Exit cleanly, so that servers, workers and gigabytes of events are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    _check_room(QUICK_GIB if options.quick else FULL_GIB)
    lines: list[Line] = []
    started = time.monotonic()
    with open_stage() as stage:
        stage.migrate("empty")
        bench = Bench(stage, QUICK if options.quick else FULL, options.batch_size)
        for name in timed(options.only):
            lines += _SCENARIOS[name](bench)
        batch_size = stage.settings("empty").outbox_batch_size if bench.batch_size is None else bench.batch_size
    title = f"The outbox engine, at most {batch_size} events a transaction{', quick' if options.quick else ''}"
    notes = [
        "CPU is per 1,000 events. Rates of workers are from the end of their first batch to the end of their last.",
        f"{tally(lines)}, in {(time.monotonic() - started) / 60:.1f} minutes.",
    ]
    if options.json:
        print(json.dumps(document(title, lines, notes), indent=2))
    else:
        show(title, lines, notes)
    return 0 if all(line.reached for line in lines) else 1


def _check_room(wanted: int) -> None:
    if sys.platform != "linux":
        sys.exit("the benchmarks need Linux: CPU time and memory are read from /proc")
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / 2**30
    if free < wanted:
        sys.exit(
            f"{folder} has {free:.0f} GiB free, but {wanted} may be needed; set TMPDIR to a folder with more space"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outbox", description=__doc__)
    add_only(parser, _SCENARIOS)
    parser.add_argument("--quick", action="store_true", help="small sizes, which take six minutes")
    parser.add_argument("--batch-size", type=int, help="the most events per transaction (default: from the settings)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
