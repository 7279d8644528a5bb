"""How the benchmark of intake sends its requests and evaluates its figures."""

import asyncio
import json
from collections import Counter
from typing import Any, cast

from benchmarks.intake.placing import mix
from benchmarks.load import Client, Load
from benchmarks.outbox.table import Cost, Line, show
from benchmarks.over_http import middle, some_orders
from benchmarks.report import Measured
from benchmarks.shop import Shop

SHOP = Shop(buyer_ids=[1, 2], product_ids=list(range(10, 30)))


class Sent:
    """A client that only notes what it is to send."""

    def __init__(self) -> None:
        self.last: tuple[bytes, str] | None = None
        self.sent: list[bytes] = []
        self.closed = False

    def send(self, request: bytes, wanted_status: str, _: float) -> None:
        self.last = request, wanted_status
        self.sent.append(request)

    def close(self) -> None:
        self.closed = True


def load(**job: Any) -> Load:
    return Load({"requests": [("a ", "", "201"), ("b ", "", "402")], **job})


def sent_by(load: Load, times: int) -> Sent:
    client = Sent()
    for _ in range(times):
        load.free(cast(Client, client))
    return client


def measured(rate: float, cpu_ms: float) -> Measured:
    return Measured("run", round(rate * 2), 2.0, cpu_ms, 1.0, 0.0, 5.0, 9.0, 100.0)


def test_each_request_has_a_key_of_its_own_unless_it_is_repeated() -> None:
    assert len(set(sent_by(load(), 100).sent)) == 100
    repeated = sent_by(load(repeated=0.3), 1000).sent
    assert len(repeated) == 1000
    assert 600 < len(set(repeated)) < 800
    # A repeated request is the one that its client has sent last, so it has been answered.
    again = [number for number, request in enumerate(repeated) if request in repeated[:number]]
    assert all(repeated[number] == repeated[number - 1] for number in again)


def test_a_reply_with_another_status_than_its_request_wants_is_counted_as_wrong() -> None:
    used = load()
    used.take(b"HTTP/1.1 402 Payment Required", 0.1, "402")
    assert used.seen.wrong == {}
    used.take(b"HTTP/1.1 201 Created", 0.1, "402")
    assert used.seen.wrong == {"201": 1}


async def test_an_open_loop_sends_at_its_rate_and_counts_the_wait_for_a_client() -> None:
    used = load(rate=1000.0)
    client = Sent()
    used.free(cast(Client, client))
    offering = asyncio.create_task(used.offer())
    await asyncio.sleep(0.1)
    waiting = len(used._due)
    # Its reply has not come, so the others wait.
    assert len(client.sent) == 1
    assert waiting > 2
    used.free(cast(Client, client))
    assert (len(client.sent), len(used._due)) == (2, waiting - 1)
    used.stop()
    used.free(cast(Client, client))
    await offering
    assert (len(client.sent), client.closed) == (2, True)


def test_a_mix_has_the_shares_of_refused_and_poisoned_orders() -> None:
    orders = some_orders(SHOP, 3)
    mixed = mix(orders, poisoned=[9], dear=[10, 11, 12])
    statuses = Counter(order.get("status", "201") for order in mixed)
    assert abs(statuses["402"] / len(mixed) - 0.05) < 0.01
    assert abs(statuses["422"] / len(mixed) - 0.05) < 0.01
    assert abs(sum(order["buyer_id"] == 9 for order in mixed) / len(mixed) - 0.02) < 0.01
    assert all(json.loads(order["body"])["items"] for order in mixed)
    assert sum(order in orders for order in mixed) > 0.85 * len(mixed)


def test_the_middle_of_several_runs_has_the_median_of_each_figure() -> None:
    found = middle([measured(100, 3.0), measured(300, 1.0), measured(200, 2.0)])
    assert (found.rate, found.cpu_ms, found.p99_ms) == (200, 2.0, 9.0)


def test_a_table_without_costs_has_no_columns_of_costs(capsys: Any) -> None:
    show("speed", [Line("rate", 3.0, "x")], [])
    assert "CPU" not in capsys.readouterr().out
    show("speed", [Line("rate", 3.0, "x", cost=Cost(1.0))], [])
    assert "CPU" in capsys.readouterr().out
