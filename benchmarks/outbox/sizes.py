"""Sizes of the scenarios: the full ones, and quick ones that take minutes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Durations are seconds."""

    rounds: int
    """How many times the compared figures are measured, alternately; the median counts."""
    events: int
    aggregates: int
    peer_jobs: dict[str, int]
    orders: int
    single_orders: int
    """Orders that are processed with one event per transaction."""
    latency_seconds: float
    idle_seconds: float
    backlog: int
    small_backlog: int
    backlog_measured: int
    """Events of the large backlog over which its rate is measured."""
    load_seconds: float
    snapshot_seconds: float
    recovery_seconds: float
    others: int
    """Events other than those of the watched aggregate."""
    watched: int
    scaling_seconds: float
    typed: int
    """Events of one or of several types, and of one or of several months."""
    written: int
    """Events that are recorded one by one."""


FULL = Sizes(
    rounds=3,
    events=1_000_000,
    aggregates=100_000,
    peer_jobs={"pgqueuer": 200_000, "procrastinate": 10_000, "oban": 40_000, "arq": 30_000},
    orders=40_000,
    single_orders=3_000,
    latency_seconds=60.0,
    idle_seconds=60.0,
    backlog=10_000_000,
    small_backlog=10_000,
    backlog_measured=1_000_000,
    load_seconds=60.0,
    snapshot_seconds=600.0,
    recovery_seconds=60.0,
    others=100_000,
    watched=10_000,
    scaling_seconds=15.0,
    typed=300_000,
    written=50_000,
)

FULL_GIB = 40
"""Disk space for the servers: ten million events, or ten minutes of dead rows, and the write-ahead log."""

QUICK = Sizes(
    rounds=1,
    events=200_000,
    aggregates=100_000,
    peer_jobs={"pgqueuer": 40_000, "procrastinate": 2_000, "oban": 8_000, "arq": 6_000},
    orders=10_000,
    single_orders=500,
    latency_seconds=6.0,
    idle_seconds=20.0,
    backlog=300_000,
    small_backlog=10_000,
    backlog_measured=150_000,
    load_seconds=4.0,
    snapshot_seconds=8.0,
    recovery_seconds=20.0,
    others=100_000,
    watched=10_000,
    scaling_seconds=3.0,
    typed=100_000,
    written=10_000,
)

QUICK_GIB = 10
