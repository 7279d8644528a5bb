"""Other job queues for Python, each in its fastest sound configuration, on the same servers.

They have a separate environment (`make bench-peers`) and run from there; of these, Waybill itself depends only on ARQ.
"""

from dataclasses import dataclass

from benchmarks.outbox import trivial
from benchmarks.outbox.bench import Bench
from benchmarks.outbox.table import NO_COST, Cost, Line, at_least
from benchmarks.stage import ROOT, run_beside
from benchmarks.usage import Meter

_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
_SLOWEST = "procrastinate"


@dataclass(frozen=True, slots=True)
class Peer:
    """One run: jobs per second, and the configuration. If `rate` is None, `how` says why."""

    name: str
    rate: float | None
    version: str = ""
    how: str = ""
    cost: Cost = NO_COST


def measure(bench: Bench) -> list[Line]:
    mine = trivial.measured(bench).rate
    peers = [_run(bench, name, jobs) for name, jobs in bench.sizes.peer_jobs.items()]
    lines = [
        Line(f"{peer.name} {peer.version}".strip(), peer.rate, "jobs/s", cost=peer.cost, note=peer.how)
        for peer in peers
    ]
    rates = {peer.name: peer.rate for peer in peers if peer.rate is not None}
    best = max(rates, key=lambda name: rates[name], default=None)
    missing = ", ".join(name for name in bench.sizes.peer_jobs if name not in rates)
    lines.append(
        Line(
            f"trivial handler, one worker, to the best of them{f', {best}' if best else ''}",
            mine / rates[best] if best else None,
            "x",
            at_least(3),
            note=f"without {missing}" if missing else "",
        )
    )
    slowest = mine / rates[_SLOWEST] if _SLOWEST in rates else None
    lines.append(Line(f"… to {_SLOWEST}", slowest, "x", at_least(70)))
    return lines


def _run(bench: Bench, name: str, jobs: int) -> Peer:
    if not _PYTHON.exists():
        return Peer(name, None, how="not installed: make bench-peers")
    with bench.database("template1", f"peer_{name}") as database:
        job = {
            "database_url": bench.stage.postgres.url(database),
            "redis_url": bench.stage.redis.url(),
            "postgres_pid": bench.stage.postgres_pid,
            "jobs": jobs,
        }
        seen = run_beside(f"benchmarks.peers.run_{name}", job, python=_PYTHON)
    if "missing" in seen:
        return Peer(name, None, how=seen["missing"])
    meter = Meter(0, 0, seen["seconds"], seen["cpu"], seen["postgres_cpu"], seen["machine_cpu"])
    return Peer(name, jobs / seen["seconds"], seen["version"], seen["how"], Cost.of(meter, jobs, seen["peak_rss_mib"]))
