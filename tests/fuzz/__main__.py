"""`python -m tests.fuzz --examples 1000 --caller seller`: as `tests/api/test_schemathesis.py`, for as long as it takes.

Prints the statuses of each operation, and what a check finds; goes on with the next operation, and exits with 1 at the
end if anything was found.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import dropwhile

import psycopg
from alembic import command

from migrations.config import alembic_config
from tests.conftest import settings_for, temporary_database
from tests.documented import COMPARISON, compared_replies
from tests.fuzz.checking import try_out
from tests.fuzz.world import CALLERS, World, open_world
from tests.servers import test_servers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, help="requests for each operation and caller (1000)")
    parser.add_argument("--caller", choices=CALLERS, action="append", help="only this one; can be repeated")
    parser.add_argument("--together", action="store_true", help="as one caller after another, in one database")
    parser.add_argument("--only", default="", help="operations whose method and path contain this")
    parser.add_argument("--from", dest="first", default="", help="the first of these operations, by a part of its name")
    parser.add_argument("--random", action="store_true", help="other requests each time")
    given = parser.parse_args()
    found = 0
    with test_servers() as servers, psycopg.connect(servers.postgres_url, autocommit=True) as administrator:
        wanted = tuple(given.caller or CALLERS)
        for callers in [wanted] if given.together else [(one,) for one in wanted]:
            with ExitStack() as stack:
                url = stack.enter_context(temporary_database(administrator, servers, "template0"))
                command.upgrade(alembic_config(url), "head")
                stack.enter_context(compared_replies())
                world = stack.enter_context(open_world(settings_for(url, servers.redis_url)))
                found += _try_all(world, callers, given)
    print(f"{found} findings", flush=True)
    return 1 if found else 0


def _try_all(world: World, callers: Sequence[str], given: argparse.Namespace) -> int:
    caller = " ".join(callers) if len(callers) < len(CALLERS) else "all"
    found = 0
    operations = [one for one in world.operations() if given.only in one.label]
    for operation in dropwhile(lambda one: given.first not in one.label, operations):
        started, used = time.monotonic(), time.process_time()
        try:
            tried = try_out(world, operation, callers, given.examples, derandomize=not given.random)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            found += 1
            COMPARISON.take()
            print(f"{caller} {operation.label}: FOUND", flush=True)
            traceback.print_exc(limit=-3)
            continue
        statuses = ", ".join(f"{status}: {number}" for status, number in sorted(tried.statuses.items()))
        seconds, cpu = time.monotonic() - started, time.process_time() - used
        print(f"{caller} {operation.label}: {statuses} ({seconds:.1f} s, {cpu:.1f} s of CPU)", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
