"""Two hundred hostile clients get errors that say why, and neither honest clients nor the process suffer.

`python -m benchmarks.hostile` measures how long honest clients wait meanwhile.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest

from benchmarks.hostile.crowd import crowds, is_fault
from benchmarks.hostile.kinds import Kind
from benchmarks.sessions import session_of
from benchmarks.usage import peak_rss_mib
from services.api.tokens import Tokens
from services.database import Database
from services.local.embedded.ports import LOOPBACK
from services.settings import Settings
from services.users.models import User
from tests.api.client import order_of
from tests.factories import make_product, make_user
from tests.faults.edge import Edge, changed, running_edge
from tests.processes import wait_until

SECONDS = 5.0
PACE = 0.3
"""Requests a second of each hostile client: 60 together, which leaves a busy machine time for the honest ones."""
HONEST = 16
MOST_MIB = 300

WANTED = {
    Kind.bad_bodies: {"400 malformed_body", "413 body_too_large", "422 invalid_input"},
    Kind.slow_heads: {"408 request_timeout"},
    Kind.huge_headers: {"431 headers_too_large"},
    Kind.deep_json: {"400 malformed_body", "413 body_too_large"},
    Kind.sign_ins: {"401 unauthenticated"},
    Kind.searches: {"200"},
}
"""Some of the replies that hostile clients of each kind must get."""


def token(settings: Settings, user: User) -> str:
    return Tokens.from_settings(settings).make(session_of(user.id))


async def place(edge: Edge, settings: Settings, buyers: Sequence[User], body: object) -> list[int]:
    """The statuses of orders that clients place meanwhile, each with a pause after the reply."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + SECONDS

    async def one(client: httpx2.AsyncClient, buyer: User) -> list[int]:
        statuses = []
        while loop.time() < ends:
            headers = {"Authorization": f"Bearer {token(settings, buyer)}", "Idempotency-Key": str(uuid4())}
            statuses.append((await client.post("/v1/orders", json=body, headers=headers)).status_code)
            await asyncio.sleep(0.2)
        return statuses

    async with httpx2.AsyncClient(base_url=edge.url, trust_env=False, timeout=30) as client:
        return [status for found in await asyncio.gather(*(one(client, buyer) for buyer in buyers)) for status in found]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With the limits of requests that an installation has by default, and less patience for slow clients."""
    limits = {name: field.default for name, field in Settings.model_fields.items() if name.startswith("rate_limit_")}
    return changed(settings, http_head_timeout=2.0, **limits)


async def test_hostile_clients_get_errors_and_honest_ones_are_served(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    buyers = [await make_user(database, credits="100000") for _ in range(HONEST)]
    hostile = [token(settings, await make_user(database)) for _ in range(50)]
    order = order_of((await make_product(database, stock=10**6, price="1.00"), 1))
    with running_edge(settings, tmp_path / "api.log") as edge:
        with crowds({"host": LOOPBACK, "port": edge.port}, hostile, PACE) as answered:
            statuses = await place(edge, settings, buyers, order)
        assert set(statuses) == {201}
        assert len(statuses) >= HONEST
        for kind, wanted in WANTED.items():
            assert wanted <= answered[kind].replies.keys(), answered
            assert not answered[kind].faults, answered
        assert peak_rss_mib(edge.pid) < MOST_MIB
        # Only the one that asks is left.
        wait_until(lambda: edge.metrics()["waybill_http_connections_open"] == 1, "the connections to end", 15)
        assert httpx2.get(f"{edge.url}/readyz", trust_env=False, timeout=30).status_code == 200
        assert set(await place(edge, settings, buyers[:1], order)) == {201}
        assert "Traceback" not in edge.process.said()


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        ("422 invalid_input", False),
        ("503 overloaded", False),
        ("closed without a reply", False),
        ("503 overloaded without Retry-After", True),
        ("503 without a code", True),
        ("500 internal_error", True),
        ("no reply", True),
        ("not connected: Connection refused", True),
    ],
)
def test_a_5xx_is_a_fault_unless_it_says_why_and_when_to_try_again(reply: str, fault: bool) -> None:
    assert is_fault(reply) is fault
