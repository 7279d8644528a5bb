"""The real handler of `order.placed`: stock, ledger, transitions and new events, in batches and one by one."""

from benchmarks.outbox.bench import Bench, middle
from benchmarks.outbox.table import Cost, Line, at_least
from benchmarks.process_orders import run_worker
from benchmarks.report import Measured
from benchmarks.shop import open_shop, place_waiting

_ITEMS = 3
_BUYERS = 200


def measure(bench: Bench) -> list[Line]:
    """A whole worker process, from the commit that queues all orders to the last one's confirmation."""
    sizes = bench.sizes
    batch_size = bench.batch_size or bench.stage.settings("empty").outbox_batch_size
    batches = _confirm(bench, sizes.orders, batch_size)
    single = _confirm(bench, sizes.single_orders, 1)
    rate, single_rate = middle([run.rate for run in batches]), middle([run.rate for run in single])
    return [
        Line("order.placed, one event a transaction", single_rate, "orders/s", cost=_cost(single[-1])),
        Line("order.placed, one worker process", rate, "orders/s", at_least(5_000), _cost(batches[-1])),
        Line("… to one event a transaction", rate / single_rate, "x", at_least(12)),
    ]


def _confirm(bench: Bench, orders: int, batch_size: int) -> list[Measured]:
    with bench.database("empty", "shop") as shop:
        url = bench.stage.postgres.url(shop)
        place_waiting(url, open_shop(url, _BUYERS), orders, _ITEMS)
        return [_run(bench, shop, orders, batch_size) for _ in range(bench.sizes.rounds)]


def _run(bench: Bench, shop: str, orders: int, batch_size: int) -> Measured:
    with bench.database(shop, "service") as service:
        return run_worker(bench.stage, service, "Waybill worker", orders, batch_size)


def _cost(run: Measured) -> Cost:
    return Cost(run.cpu_ms * 1000, run.postgres_cpu_ms * 1000, run.peak_rss_mib, run.others_cpu)
