"""Single transfers."""

from functools import partial

from benchmarks.intake.bench import Bench, Found, path_settings, ratio
from benchmarks.outbox.table import Line, at_least
from benchmarks.over_http import measured, middle, plain_transfers, send, transfer_requests
from benchmarks.report import Measured
from benchmarks.shop import open_shop

_USERS = 2000


def transfer(bench: Bench) -> Found:
    """Single transfers, 16 clients."""
    bench.stage.migrate("bank")
    bank = open_shop(bench.stage.postgres.url("bank"), _USERS)
    job = {"clients": 16, "seconds": bench.seconds}

    def over_http(name: str, *, group: bool) -> Measured:
        seen = send(
            bench.stage,
            "bank",
            job,
            lambda settings: transfer_requests(settings, bank),
            settings=path_settings(group=group),
        )
        return measured(name, seen, unit="transfers")

    runs = bench.alternate(
        {
            "plain": lambda: plain_transfers(bench.stage, "bank", job, bank),
            "single": partial(over_http, "single path", group=False),
            "group": partial(over_http, "group path", group=True),
        }
    )
    bench.stage.drop("bank")
    plain, single, group = (middle(runs[name]) for name in ("plain", "single", "group"))
    lines = [
        Line(
            "single transfers, 16 clients",
            group.rate,
            "transfers/s",
            at_least(1200),
            note=f"{ratio(runs['group'], runs['plain']):.2f} x plain asyncpg, which writes no key and no event",
        ),
        Line(
            "… to the single path",
            ratio(runs["group"], runs["single"]),
            "x",
            at_least(2.0),
            note=f"{group.rate:,.0f} and {single.rate:,.0f} transfers/s",
        ),
    ]
    return Found("Single transfers, 16 clients", [plain, single, group], lines)
