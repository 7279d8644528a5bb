"""Counts of one worker's job runs, for its heartbeat and for Prometheus."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from prometheus_client.metrics_core import CounterMetricFamily, Metric

from services.fields import now


@dataclass(slots=True)
class JobRuns:
    """One job's runs in this worker since the worker started."""

    runs: int = 0
    failures: int = 0
    last_at: datetime | None = None
    last_seconds: float = 0.0
    last_error: str | None = None

    def add(self, seconds: float, error: str | None) -> None:
        """Count a run that has just ended."""
        self.runs += 1
        self.last_at, self.last_seconds = now(), seconds
        if error is not None:
            self.failures += 1
            self.last_error = error


@dataclass(slots=True)
class JobMetrics:
    """The runs of all jobs of one worker, by name."""

    functions: dict[str, JobRuns] = field(default_factory=dict)

    def of(self, name: str) -> JobRuns:
        return self.functions.setdefault(name, JobRuns())

    def collect(self) -> Iterable[Metric]:
        """The runs and failures as counters."""
        runs = CounterMetricFamily("waybill_job_runs", "Runs of scheduled jobs in this worker.", labels=("name",))
        failures = CounterMetricFamily("waybill_job_failures", "Runs of scheduled jobs that failed.", labels=("name",))
        for name, one in list(self.functions.items()):
            runs.add_metric((name,), one.runs)
            failures.add_metric((name,), one.failures)
        return [runs, failures]
