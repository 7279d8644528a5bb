"""The faults: what is killed, cut, locked and silenced, and when, drawn from the seed."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import LiteralString

import psycopg
from psycopg.rows import TupleRow

from services.local.embedded.child import stop
from tests.faults.storm.proxy import Proxy
from tests.faults.storm.site import Member, Site

_GRACE = 15.0
"""Seconds that a process may take to stop after SIGTERM."""
_OURS: LiteralString = "datname = current_database() AND application_name LIKE 'waybill-%%'"
_TERMINATE: LiteralString = f"""
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS} AND pid IN
    (SELECT pid FROM pg_stat_activity WHERE {_OURS} ORDER BY random() LIMIT %s)
"""
_CANCEL: LiteralString = f"""
    SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {_OURS} AND state = 'active' ORDER BY random() LIMIT 1
"""
_ANY_BACKEND: LiteralString = f"SELECT pid FROM pg_stat_activity WHERE {_OURS} ORDER BY random() LIMIT 1"


@dataclass(order=True)
class _Due:
    at: float
    number: int
    act: Callable[[], None] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Weather:
    """How long the storm lasts, and its faults; seconds."""

    length: float
    gap: float
    """Seconds between two faults."""
    lock: float
    silence: tuple[float, float]
    lasting: float
    """The share of silences that the storm does not end: the product has to help itself."""
    silent_end: float
    """How long clients continue at the end, when every connection has gone silent and nothing else is wrong."""


SHORT = Weather(length=20.0, gap=1.2, lock=3.0, silence=(2.0, 5.0), lasting=0.0, silent_end=0.0)
LONG = Weather(length=180.0, gap=2.5, lock=20.0, silence=(5.0, 30.0), lasting=0.3, silent_end=10.0)


class Chaos:
    """One storm over a site, from the main thread."""

    def __init__(self, site: Site, weather: Weather, seed: int) -> None:
        self._site = site
        self._weather = weather
        self._dice = random.Random(f"{seed} chaos")
        self._due: list[_Due] = []
        self._numbers = count()
        self.kinds: dict[str, Callable[[], None]] = {
            "kill an API": lambda: self._kill(self._site.apis),
            "stop an API": lambda: self._terminate(self._site.apis),
            "kill a worker": lambda: self._kill(self._site.workers),
            "stop a worker": lambda: self._terminate(self._site.workers),
            "kill Redis": self._kill_redis,
            "flush Redis": self._flush_redis,
            "silence Redis": lambda: self._silence(self._site.redis_proxy),
            "kill a backend": self._kill_backend,
            "restart PostgreSQL": self._restart_postgres,
            "terminate sessions": self._terminate_sessions,
            "cancel statements": self._cancel_statements,
            "lock accounts": lambda: self._lock(
                "SELECT FROM accounts WHERE user_id = ANY(%s) FOR UPDATE", self.accounts
            ),
            "lock stock": lambda: self._lock(
                "SELECT FROM inventory WHERE product_id = ANY(%s) FOR UPDATE", self.products
            ),
            "silence an API's database": lambda: self._silence(self._dice.choice(self._site.apis).proxy),
            "silence a worker's database": lambda: self._silence(self._dice.choice(self._site.workers).proxy),
        }
        self.accounts: list[int] = []
        """Users whose accounts are locked at times."""
        self.products: list[int] = []
        """Products whose stock is locked at times."""
        self._calm_at = 0.0

    def blow(self) -> None:
        """Cause faults until the time is over, and undo all of them except lasting silences."""
        begun = time.monotonic()
        self._calm_at = begun + self._weather.length
        deck: list[str] = []
        for number in range(int((self._weather.length - 2.0) / self._weather.gap)):
            if not deck:
                deck = list(self.kinds)
                self._dice.shuffle(deck)
            at = begun + 1.0 + self._weather.gap * (number + self._dice.uniform(0, 0.7))
            self._later(at, self._named(deck.pop()))
        while self._due or time.monotonic() < self._calm_at:
            self._site.tend()
            # When the time is over, the remaining steps of the faults are taken immediately.
            if self._due and time.monotonic() >= min(self._due[0].at, self._calm_at):
                heappop(self._due).act()
            time.sleep(0.02)
        if self._weather.silent_end:
            self._silence_everything()

    def _silence_everything(self) -> None:
        """Silence every open connection permanently; later connections work."""
        for proxy in self._site.proxies:
            self._site.findings.seen["connections silenced"] += self._site.call(proxy.freeze, False)
        self._site.findings.note("silenced everything")
        self._site.database_away = time.monotonic()
        ends = time.monotonic() + self._weather.silent_end
        while time.monotonic() < ends:
            self._site.tend()
            time.sleep(0.05)

    def _named(self, kind: str, tries: int = 5) -> Callable[[], None]:
        def act() -> None:
            try:
                self.kinds[kind]()
            except psycopg.OperationalError:
                # It met another fault: a server that is down, a lock that is taken.
                if tries > 1:
                    self._after(1.0, self._named(kind, tries - 1))
            else:
                self._site.findings.seen[f"chaos: {kind}"] += 1
                self._site.findings.note(kind)

        return act

    def _later(self, at: float, act: Callable[[], None]) -> None:
        heappush(self._due, _Due(at, next(self._numbers), act))

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._later(time.monotonic() + seconds, act)

    def _standing(self, members: list[Member]) -> Member | None:
        up = [member for member in members if not member.down and member.running.lives]
        return self._dice.choice(up) if up else None

    def _kill(self, members: list[Member]) -> None:
        if (member := self._standing(members)) is not None:
            member.down = True
            member.running.kill()
            self._after(self._dice.uniform(0, 1.5), member.start_again)

    def _terminate(self, members: list[Member]) -> None:
        if (member := self._standing(members)) is not None:
            member.down = True
            member.running.process.terminate()
            self._await_end(member, time.monotonic() + _GRACE)

    def _await_end(self, member: Member, deadline: float) -> None:
        """Start the process again when it has stopped; report a fault if it does not stop, or not cleanly."""
        code = member.running.process.poll()
        if code is None and time.monotonic() < deadline:
            self._after(0.1, lambda: self._await_end(member, deadline))
            return
        if code is None:
            self._site.findings.add("a process that does not leave", f"{member.name}: {member.running.said()[-700:]}")
            member.running.kill()
        elif code not in (0, -signal.SIGTERM) and not self._site.found_no_database(member):
            self._site.findings.add("an untidy exit", f"{member.name}, {code}: {member.running.said()[-700:]}")
        member.start_again()

    def _kill_redis(self) -> None:
        assert self._site.redis.process is not None
        self._site.redis.process.kill()
        self._site.redis.process.wait()
        self._after(self._dice.uniform(0, 2), lambda: _start_redis(self._site))

    def _flush_redis(self) -> None:
        _flush(self._site)

    def _kill_backend(self) -> None:
        """One backend ends by SIGKILL: PostgreSQL takes all sessions down and recovers."""
        for (pid,) in self._site.rows(_ANY_BACKEND):
            self._site.database_away = time.monotonic()
            os.kill(pid, signal.SIGKILL)

    def _restart_postgres(self) -> None:
        process = self._site.postgres.process
        assert process is not None
        stop(process, (signal.SIGQUIT, 10.0))
        time.sleep(self._dice.choice((0, 0.5, 1.5)))
        self._site.postgres.start()
        self._site.database_away = time.monotonic()

    def _terminate_sessions(self) -> None:
        many = self._dice.choice((1, 3, 10))
        self._bursts(_TERMINATE, many, times=3, gap=0.2)

    def _cancel_statements(self) -> None:
        self._bursts(_CANCEL, None, times=60, gap=0.02)

    def _bursts(self, statement: LiteralString, value: int | None, *, times: int, gap: float) -> None:
        with self._site.connect() as connection:
            for _ in range(times):
                hit = connection.execute(statement, None if value is None else [value]).fetchall()
                self._site.findings.seen["sessions terminated" if value else "statements cancelled"] += len(hit)
                time.sleep(gap)

    def _lock(self, statement: LiteralString, ids: list[int]) -> None:
        connection = self._site.connect(autocommit=False)
        try:
            connection.execute("SET lock_timeout = '2s'")
            connection.execute(statement, [ids])
        except psycopg.Error:
            connection.close()
            raise
        self._after(self._weather.lock, lambda: _let_go(connection))

    def _silence(self, proxy: Proxy) -> None:
        hangs = self._dice.random() < 0.3
        hit = self._site.call(proxy.freeze, hangs)
        self._site.findings.seen["connections silenced"] += hit
        if hangs:
            self._site.findings.note("(new connections are silent, too)")
        self._site.database_away = time.monotonic()
        shortest, longest = self._weather.silence
        # If new connections hang, too, nothing but the end of the fault can help.
        if hangs or self._dice.random() >= self._weather.lasting:
            seconds = self._dice.uniform(shortest, longest)
            self._after(seconds, lambda: self._hear_again(proxy))

    def _hear_again(self, proxy: Proxy) -> None:
        self._site.call(proxy.thaw)
        self._site.database_away = time.monotonic()


def _let_go(connection: psycopg.Connection[TupleRow]) -> None:
    # It may have been cut with its server.
    with suppress(psycopg.Error):
        connection.close()


def _start_redis(site: Site) -> None:
    site.redis.start()


def _flush(site: Site) -> None:
    from redis import Redis
    from redis.exceptions import RedisError

    with suppress(RedisError), Redis.from_url(site.redis.url()) as operator:
        operator.flushall()
