"""After the storm: whether every acknowledged write exists exactly once, and nothing is left behind."""

import asyncio
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, LiteralString

from benchmarks.sessions import session_of
from services.budget import PROBE_CONNECTIONS
from services.database import open_database
from services.operations import service as operations
from services.unit_of_work import UnitOfWork
from tests.faults.storm.clients import Load, unanswered
from tests.faults.storm.site import POOL, POOL_SIZE, Member, Site, environment_without_proxies
from tests.faults.storm.wire import Broken, exchange, render
from tests.faults.storm.writes import Kind, Write
from tests.processes import ROOT

RECOVERY = 60.0
"""Seconds within which the product must recover by itself when the storm is over."""
_AT_REST = 5.0
"""No transaction lasts this many seconds when there is nothing to do."""
_REPEATERS = 8

_OLD_TRANSACTIONS: LiteralString = """
    SELECT application_name, client_port, state, now() - xact_start, left(query, 120) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'waybill-%%'
    AND xact_start < now() - make_interval(secs => %s)
"""
_BUSY: LiteralString = """
    SELECT application_name, state, left(query, 120) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'waybill-api%%' AND state <> 'idle'
"""
_WAITING: LiteralString = """
    SELECT locktype, relation::regclass::text, mode, pid FROM pg_locks WHERE NOT granted
    AND waitstart < now() - make_interval(secs => %s)
"""
_SESSIONS: LiteralString = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
    AND application_name LIKE 'waybill-%%' AND client_port = ANY(%s)
"""
_BLOCKED: LiteralString = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
    AND application_name LIKE 'waybill-%%' AND wait_event_type = 'Lock' AND client_port = ANY(%s)
"""
_ERROR = re.compile(r"[a-zA-Z_.]*(Error|Exception|Timeout)\b")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TRANSACTIONS = """
    SELECT application_name, state, wait_event, extract(epoch FROM clock_timestamp() - xact_start)::int AS seconds_old,
        extract(epoch FROM clock_timestamp() - state_change)::int AS seconds_in_state, left(query, 120)
    FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start
"""
_STATES = {Kind.cancel: "cancelled", Kind.post: "posted", Kind.void: "voided"}
"""The final state of an order or a transfer after such a write was acknowledged."""
_LEAKS = ("non-checked-in connection", "was never awaited")
"""What a log says if a connection, or a coroutine, was left to the garbage collector."""


def wait_for(condition: Callable[[], bool], site: Site, seconds: float) -> bool:
    """Whether the condition was met in time; ended processes are restarted meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        site.tend()
        time.sleep(0.1)
    return True


def settle(site: Site, seconds: float = RECOVERY) -> bool:
    """Wait until each API is ready and the outbox is empty; report a fault if that takes too long."""

    def is_settled() -> bool:
        return all(site.is_ready(api) for api in site.apis) and site.rows("SELECT count(*) FROM outbox") == [(0,)]

    if wait_for(is_settled, site, seconds):
        return True
    ready = {api.name: site.is_ready(api) for api in site.apis}
    left = site.rows("SELECT count(*), max(attempts), max(right(last_error, 200)) FROM outbox")
    doing = site.rows(_TRANSACTIONS)
    site.findings.add(
        "not back to work by itself",
        f"after {seconds:.0f} s: ready {ready}, waiting events {left}, transactions {doing}",
    )
    return False


def judge(site: Site, load: Load, capacity: dict[str, int]) -> None:
    """Check everything; add what is wrong to the site's findings."""
    settled = settle(site)
    for proxy in site.proxies:
        site.call(proxy.thaw)
    if not settled:
        settle(site, 30.0)
    _find_old_transactions(site)
    missing = _find_missing(site, load.writes)
    site.call(_repeat_all, load)
    settle(site, 30.0)
    _find_missing(site, [write for write in load.writes if write.key not in missing])
    _find_doubles(site, load.writes)
    _find_wrong_outcomes(site)
    _find_leftovers(site)
    _compare_capacity(site, load, capacity)
    _check_books(site)
    _read_logs(site)


def _read_logs(site: Site) -> None:
    """Find what was left to the garbage collector, and note the errors, which say where a 500 came from."""
    for member in site.members:
        lines = [_COLOUR.sub("", line) for line in member.running.said().splitlines()]
        for line in lines:
            if any(leak in line for leak in _LEAKS):
                site.findings.add("left to the garbage collector", f"{member.name}: {line}")
        errors = Counter(line[:160] for line in lines if _ERROR.match(line))
        for line, number in errors.most_common(8):
            site.findings.errors.append(f"{member.name} logged {number} times: {line}")


def _find_old_transactions(site: Site) -> None:
    """No transaction may be older than work at rest takes: an older one has been forgotten."""
    old: list[Any] = []

    def are_over() -> bool:
        old[:] = site.rows(_OLD_TRANSACTIONS, _AT_REST)
        return not old

    if not wait_for(are_over, site, 2 * _AT_REST):
        for session in old:
            site.findings.add("a transaction left open", str(session))


def _find_missing(site: Site, writes: Sequence[Write]) -> set[str]:
    """Check acknowledged writes over an independent connection; returns the keys of missing ones."""
    ids = {
        Kind.order: dict(site.rows("SELECT id::text, status FROM orders")),
        Kind.refund: dict(site.rows("SELECT id::text, order_id FROM refunds")),
        Kind.transfer: dict(site.rows("SELECT id::text, state FROM transfers")),
    }
    noted = set(_made(site))
    missing = set()
    for write in writes:
        if write.acknowledged and (lost := _lost(write, ids, noted)):
            missing.add(write.key)
            site.findings.add(f"an acknowledged {write.kind} that is missing", f"{lost} of {write}")
    return missing


def _lost(write: Write, ids: dict[Kind, dict[str, Any]], noted: set[str]) -> list[str]:
    """What is missing from this acknowledged write."""
    match write.kind:
        case Kind.cancel | Kind.post | Kind.void:
            table = ids[Kind.order if write.kind is Kind.cancel else Kind.transfer]
            state = table.get(write.on or "", "missing")
            return [] if state == _STATES[write.kind] else [f"{write.on} is {state}"]
        case Kind.order | Kind.refund:
            there = ids[write.kind]
        case _:
            there = ids[Kind.transfer]
    lost = [told for told in write.effects().values() if told not in there]
    # A reply that broke off after its status line has no id; the key identifies it.
    if write.first is None and not _traces(write, noted):
        lost.append(write.key)
    if write.kind is Kind.registration and write.key not in noted:
        lost.append(write.key)
    return lost


def _made(site: Site) -> Counter[str]:
    """How often each key, or key and number in a batch, is in what was written."""
    return Counter(
        name
        for (name,) in site.rows(
            "SELECT reference FROM orders WHERE reference IS NOT NULL UNION ALL SELECT reason FROM refunds"
            " UNION ALL SELECT note FROM transfers WHERE kind = 'transfer'"
            " UNION ALL SELECT split_part(email, '@', 1) FROM users"
        )
    )


def _traces(write: Write, noted: Iterable[str]) -> bool:
    first = f"{write.key}/" if write.kind is Kind.batch else write.key
    return any(note.startswith(first) if write.kind is Kind.batch else note == first for note in noted)


def _find_doubles(site: Site, writes: Sequence[Write]) -> None:
    made = _made(site)
    keys = {write.key for write in writes}
    for note, number in made.items():
        if number > 1 and note.split("/")[0] in keys:
            site.findings.add("a write that took effect more than once", f"{note}: {number} times")
    for write in writes:
        effects = write.effects()
        if effects and {note: made[note] for note in effects} != dict.fromkeys(effects, 1):
            site.findings.add("a write that did not take effect once", f"{write}: {[made[note] for note in effects]}")


def _find_wrong_outcomes(site: Site) -> None:
    """Check that orders are final, and that no event was given up for faults that were not its own."""
    for order, status in site.rows("SELECT id, status FROM orders WHERE status IN ('pending', 'awaiting_payment')"):
        site.findings.add("an order that is not final", f"{order}: {status}")
    for letter in site.rows("SELECT type, attempts, left(error, 300) FROM dead_letters"):
        site.findings.add("a dead letter", str(letter))


async def _repeat_all(load: Load) -> None:
    """Send each key once more: answered writes are answered again, the others take effect now at the latest."""
    todo = iter([write for write in load.writes if write.has_key])
    findings = load.findings
    findings.seen["keys without an answer after the storm"] = len(unanswered(load.writes))
    dice = random.Random(load.seed)

    async def repeat() -> None:
        for write in todo:
            before = write.first
            reply = await load.deliver(dice, write, give_up=20.0)
            if reply is None:
                findings.add("a key that gets no answer", str(write))
            elif before is not None and reply.headers.get("idempotency-replayed") != "true":
                findings.add("an answered key that was free again", f"{write}; now {reply}")
            else:
                findings.seen["keys that answered as before" if before else "keys answered late"] += 1

    await asyncio.gather(*(repeat() for _ in range(_REPEATERS)))


def _find_leftovers(site: Site) -> None:
    """Locks, transactions and connections after everything is done."""
    _find_old_transactions(site)
    if not wait_for(lambda: not site.rows(_WAITING, 1.0), site, 5.0):
        site.findings.add("a lock that is waited for", str(site.rows(_WAITING, 1.0)))
    if not wait_for(lambda: not site.rows(_BUSY), site, 5.0):
        site.findings.add("a busy connection of an API at rest", str(site.rows(_BUSY)))
    for member in site.members:
        _check_pool(site, member)


def _check_pool(site: Site, member: Member) -> None:
    # Beside the pool, a worker has the connections of its poll loops, an API those of its probe.
    most = POOL_SIZE + (site.settings.polling_connections if member in site.workers else PROBE_CONNECTIONS)
    back = wait_for(lambda: _sessions(site, member) <= most, site, 5.0)
    number = _sessions(site, member)
    site.findings.seen[f"connections of {member.name} at the end"] = number
    if not back:
        site.findings.add(
            "a pool that is not back to its size", f"{member.name}: {number}, {most} belong there at rest"
        )


def _sessions(site: Site, member: Member) -> int:
    [(number,)] = site.rows(_SESSIONS, site.call(member.proxy.ports))
    return int(number)


def measure_capacity(site: Site, load: Load, api: Member, name: str) -> int:
    """How many requests of this API can be in the database at once: as many as wait for one locked account.

    The transfers are part of the load's writes, and must all succeed once the account is free.
    """
    sink = load.shop.collector
    with site.connect(autocommit=False) as locking:
        locking.execute("SELECT FROM accounts WHERE user_id = %s FOR UPDATE", [sink])
        sent = [site.portal.start_task_soon(_transfer_to, load, api, sink, f"{name}-{n}") for n in range(POOL)]
        most = [0]

        def is_full() -> bool:
            [(blocked,)] = site.rows(_BLOCKED, site.call(api.proxy.ports))
            most[0] = max(most[0], blocked)
            return most[0] == POOL

        wait_for(is_full, site, 3.0)
    for one in sent:
        one.result(30)
    return most[0]


async def _transfer_to(load: Load, api: Member, sink: int, key: str) -> None:
    by = load.shop.buyers[hash(key) % len(load.shop.buyers)]
    body = f'{{"to_user_id": {sink}, "amount": "0.01", "note": "{key}"}}'.encode()
    write = Write(Kind.transfer, by, "/v1/transfers", key, body)
    load.writes.append(write)
    for _ in range(20):
        request = render("POST", write.path, token=load.tokens.make(session_of(by)), key=key, body=body)
        try:
            reply = await exchange(api.port, request, seconds=20.0)
        except Broken:
            continue
        if reply.status == 201:
            write.first = reply
            return
        await asyncio.sleep(0.2)
    load.findings.add("a transfer in calm weather that fails", str(write))


def _compare_capacity(site: Site, load: Load, before: dict[str, int]) -> None:
    """A connection that the pool has lost permanently takes one of its places."""
    for api in site.apis:
        after = measure_capacity(site, load, api, f"after-{api.name}")
        site.findings.seen[f"capacity of {api.name}"] = after
        if after < before[api.name]:
            site.findings.add("places of a pool that are gone", f"{api.name}: {after}, and {before[api.name]} before")


def _check_books(site: Site) -> None:
    books = site.call(_books, site)
    if not books.balanced:
        site.findings.add("books that do not balance", str(books))
    audit = subprocess.run(
        [sys.executable, "-m", "services.cli", "ledger", "audit"],
        cwd=ROOT,
        env=environment_without_proxies(site),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if audit.returncode != 0:
        lines = islice((audit.stdout + audit.stderr).splitlines(), 5)
        site.findings.add("an audit with differences", f"exit code {audit.returncode}: {' | '.join(lines)}")


async def _books(site: Site) -> Any:
    async with open_database(site.settings, "test") as database, UnitOfWork(database.read) as uow:
        return await operations.books(uow)
