"""The clock of this process: the host's until it has been compared with the database's, then the database's.

Hosts disagree about the time, and a host's clock can be stepped by hours while a process runs. The database's clock is
the one that all processes share. So a process compares the two when it starts and every few seconds
(`services/skew.py`). In between it follows the database's clock by the monotonic clock, which is never stepped.

A time on which a decision in the database depends is still written by the server, in SQL: this clock is accurate only
to within a round trip to the database, and only in a process that has compared the clocks.
"""

from time import monotonic, time


def host_time() -> float:
    """Seconds since the epoch by the clock of this host. All code that reads that clock reads it here."""
    return time()


class Clock:
    """Seconds since the epoch (UTC)."""

    def __init__(self) -> None:
        self._lead: float | None = None
        """How far the database's clock is ahead of the monotonic one."""

    def time(self) -> float:
        return host_time() if self._lead is None else self._lead + monotonic()

    def follow(self, database: float, at: float, precision: float) -> None:
        """Follow the database's clock, which read `database` (give or take `precision`) at monotonic time `at`.

        If this clock is within the precision it stays as it is, so slow trips to the database do not make it jitter.
        """
        lead = database - at
        if self._lead is None or abs(lead - self._lead) > precision:
            self._lead = lead


CLOCK = Clock()
"""The clock that `now()` and `new_id()` of `services/fields.py` use."""
