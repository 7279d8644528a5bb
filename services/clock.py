"""The clock of this process: the host's, until it is compared with the database's, and the database's from then on.

Hosts disagree about the time, and a host's clock can be stepped by hours while a process runs. The database's clock is
the one that all processes share. So a process compares the two at its start and every few seconds (`services/skew.py`)
and goes by the database's clock meanwhile, counted on with the monotonic clock, which no step reaches.

What a decision in the database depends on is still written in SQL, by the server: this clock is right to
within a trip to the database, and only in a process that has compared it.
"""

from time import monotonic, time


def host_time() -> float:
    """Seconds since the epoch by the clock of this host. Everything that reads that clock reads it here."""
    return time()


class Clock:
    """Seconds since the epoch (UTC)."""

    def __init__(self) -> None:
        self._lead: float | None = None
        """What the database's clock is ahead of the monotonic one."""

    def time(self) -> float:
        return host_time() if self._lead is None else self._lead + monotonic()

    def follow(self, database: float, at: float, precision: float) -> None:
        """Go by the database's clock, which showed `database` at `at` of the monotonic clock, give or take `precision`.

        Where this clock is within the precision it stays as it is: slow trips to the database do not make it jitter.
        """
        lead = database - at
        if self._lead is None or abs(lead - self._lead) > precision:
            self._lead = lead


CLOCK = Clock()
"""The one that `now()` and `new_id()` of `services/fields.py` go by."""
