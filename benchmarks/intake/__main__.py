"""What taking orders and transfers over HTTP costs, with and without group commit: `python -m benchmarks.intake`.

Every figure is compared with baselines of the same run: the single path of the same version, and plain asyncpg doing
one order or transfer a transaction. What is compared is measured in turn, and the medians count.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from functools import partial

from benchmarks.intake import flood, placing, steady, transferring
from benchmarks.intake.bench import BUYERS, ITEMS, KNOWS_GROUPS, Bench, Found
from benchmarks.outbox.table import document, show, tally
from benchmarks.report import runs_document, show_runs
from benchmarks.scenarios import add_only, timed
from benchmarks.shop import EARLIER_ORDERS, open_shop, place_waiting
from benchmarks.stage import open_stage

_NOISE = 0.2
"""CPUs that others may keep busy before the figures have to say so."""

_SCENARIOS: dict[str, Callable[[Bench], Found]] = {
    "place16": partial(placing.place, clients=16),
    "place64": partial(placing.place, clients=64),
    "transfers": transferring.transfer,
    "lone": placing.place_alone,
    "mixed": placing.place_mixed,
    "latency": steady.process_steadily,
    "keys": placing.place_with_keys,
    "limits": placing.place_with_limits,
    "two": placing.place_by_two,
    "flood": flood.place_beside_a_flood,
}


def main() -> int:
    options = _options()
    # Exit cleanly, so that servers are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    found: dict[str, Found] = {}
    with open_stage() as stage:
        stage.migrate("shop")
        url = stage.postgres.url("shop")
        shop = open_shop(url, BUYERS)
        place_waiting(url, shop, EARLIER_ORDERS, ITEMS)
        bench = Bench(stage, shop, options.seconds, options.rounds)
        for name in timed(options.only):
            found[name] = _SCENARIOS[name](bench)
    lines = [line for one in found.values() for line in one.lines]
    title = f"Taking orders and transfers; {options.seconds:g} s a run, rounds: {options.rounds}"
    notes = [] if KNOWS_GROUPS else ["This version has no group commit: the group path is the single path."]
    others = max(run.others_cpu for one in found.values() for run in one.runs)
    if others > _NOISE:
        notes.append(f"Others kept up to {others:.1f} CPUs busy: rates and times say little, CPU ms more.")
    notes += [
        "Ratios are medians of those of a round. The books of every database were recounted and balance.",
        f"{tally(lines)}.",
    ]
    if options.json:
        runs = {name: runs_document(one.runs) for name, one in found.items()}
        print(json.dumps({**document(title, lines, notes), "runs": runs}, indent=2))
    else:
        for one in found.values():
            show_runs(one.title, one.runs)
        show(title, lines, notes)
    return 0 if all(line.reached for line in lines) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.intake", description=__doc__)
    add_only(parser, _SCENARIOS)
    parser.add_argument("--seconds", type=float, help="measured seconds per run (default: 8; quick: 3)")
    parser.add_argument("--rounds", type=int, help="rounds of what is compared (default: 3; quick: 1)")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    options.seconds = options.seconds or (3.0 if options.quick else 8.0)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    sys.exit(main())
