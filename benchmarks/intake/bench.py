"""What the scenarios have in common: the shop, rounds of what is compared, and the two paths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.outbox.table import Line
from benchmarks.over_http import WARMUP_SECONDS, Order, measured, order_requests, send
from benchmarks.report import Measured
from benchmarks.shop import Shop
from benchmarks.stage import Stage
from services.settings import Settings

ITEMS = 3
BUYERS = 200
KNOWS_GROUPS = "group_commit" in Settings.model_fields

Measure = Callable[[], Measured]


@dataclass(frozen=True, slots=True)
class Found:
    """What a scenario has found: its runs, and the lines of the table."""

    title: str
    runs: Sequence[Measured]
    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class Bench:
    """The servers, the shop in the database `shop`, and how long and how often to measure."""

    stage: Stage
    shop: Shop
    seconds: float
    rounds: int
    shares: dict[str, list[str]] = field(default_factory=dict)

    def alternate(self, measures: dict[str, Measure]) -> dict[str, list[Measured]]:
        """Measure each in turn, in rounds that begin at either end."""
        found: dict[str, list[Measured]] = {name: [] for name in measures}
        for number in range(self.rounds):
            for name in reversed(measures) if number % 2 else measures:
                found[name].append(measures[name]())
        return found

    def orders(
        self, name: str, clients: int, orders: Sequence[Order], source: str = "shop", *, group: bool, **more: Any
    ) -> Measured:
        """Place orders over HTTP, with access tokens, or with `keys` if given."""
        job = {"clients": clients, "seconds": self.seconds, "repeated": more.pop("repeated", 0.0)}
        job["warmup"] = more.pop("warmup", WARMUP_SECONDS)
        keys = more.pop("keys", None)
        settings = path_settings(group=group, limits=more.pop("limits", True))
        seen = send(
            self.stage,
            source,
            job,
            lambda settings: order_requests(settings, orders, keys),
            **more,
            settings=settings,
        )
        self.shares.setdefault(name, []).append(_shares(seen))
        return measured(name, seen)


def path_settings(*, group: bool, limits: bool = True) -> dict[str, Any]:
    """With limits, each caller may send as many orders and transfers as by default."""
    path = {"group_commit": group} if KNOWS_GROUPS else {}
    limit = Settings.model_fields.get("rate_limit_write")
    return {**path, "rate_limit_write": limit.default} if limits and limit is not None else path


def _shares(seen: dict[str, Any]) -> str:
    """Of how many CPUs each part had the time."""
    others = seen["machine_cpu"] - seen["cpu"] - seen["postgres_cpu"] - seen["own_cpu"]
    parts = {"API": seen["cpu"], "PostgreSQL": seen["postgres_cpu"], "load generator": seen["own_cpu"]}
    shown = [f"{name} {cpu / seen['seconds']:.2f}" for name, cpu in {**parts, "others": others}.items()]
    return ", ".join(shown)


def ratio(ones: Sequence[Measured], others: Sequence[Measured]) -> float:
    """The median ratio of the rates of a round."""
    return median(one.rate / other.rate for one, other in zip(ones, others, strict=True))
